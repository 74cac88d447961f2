_base_ = [
    '../_base_/models/mask-rcnn_mirrorla_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime_det.py',
]

optim_wrapper = dict(
    type='mirrorla_mm.AmpOptimWrapper',
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
