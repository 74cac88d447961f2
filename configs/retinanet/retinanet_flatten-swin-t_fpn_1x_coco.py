_base_ = './retinanet_mirrorla-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearSwin',
        arch='t',
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        attn_cfg=dict(type='FLattenAttention'),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
