_base_ = './mirrorla-t_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearPVT',
        arch='t',
        attn_cfg=dict(type='FLattenAttention'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
