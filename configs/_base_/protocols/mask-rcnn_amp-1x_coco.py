_base_ = [
    '../models/mask-rcnn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../schedules/amp-adamw_1x.py',
    '../runtime_det.py',
    '../schedules/no_decay.py',
]

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
