_base_ = [
    '../models/mask-rcnn.py',
    '../datasets/coco_instance_ms-crop.py',
    '../schedules/amp-adamw_3x.py',
    '../runtime_det.py',
    '../schedules/no_decay.py',
]

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
