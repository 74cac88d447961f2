_base_ = [
    '../models/retinanet.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../schedules/adamw_1x.py',
    '../runtime_det.py',
    '../schedules/no_decay.py',
]

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
