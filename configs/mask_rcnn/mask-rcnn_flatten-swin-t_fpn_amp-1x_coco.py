_base_ = './mask-rcnn_mirrorla-t_fpn_amp-1x_coco.py'

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
