_base_ = [
    '../_base_/models/mask-rcnn_mirrorla_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/amp-adamw_1x.py',
    '../_base_/runtime_det.py',
]
