_base_ = './mirrorla-t_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearSwin',
        arch='t',
        drop_path_rate=0.2,
        attn_cfg=dict(type='FLattenAttention'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
