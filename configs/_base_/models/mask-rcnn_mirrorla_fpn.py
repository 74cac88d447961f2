_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='mirrorla_mm.MirrorLA', arch='t', norm_eval=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
