_base_ = [
    '../_base_/models/retinanet_mirrorla_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime_det.py',
]
