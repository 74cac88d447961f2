_base_ = [
    '../_base_/models/retinanet_mirrorla_fpn.py',
    './_base_/demo_detection.py',
    './_base_/demo_runtime.py',
]
default_scope = 'mmdet'

model = dict(
    backbone=dict(arch='xt', layout='linear'),
    neck=dict(
        in_channels=[64, 128, 384],
        out_channels=64,
        add_extra_convs=False,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=5,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(ratios=[1.0], strides=[8, 16, 32]),
    ),
)
