_base_ = './mirrorla-s_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearSwin',
        arch='s',
        drop_path_rate=0.3,
        attn_cfg=dict(type='PolaAttention'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
