_base_ = [
    '../_base_/models/mask-rcnn_mirrorla_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/amp-adamw_3x.py',
    '../_base_/runtime_det.py',
]
