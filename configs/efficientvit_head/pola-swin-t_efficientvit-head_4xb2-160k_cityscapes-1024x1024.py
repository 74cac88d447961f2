_base_ = './mirrorla-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearSwin',
        arch='t',
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        attn_cfg=dict(type='PolaAttention'),
    ),
    decode_head=dict(in_channels=[192, 384, 768]),
)
