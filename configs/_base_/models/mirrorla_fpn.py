_base_ = 'mmseg::_base_/models/fpn_r50.py'

model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, type='mirrorla_mm.MirrorLA', arch='t', norm_eval=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
