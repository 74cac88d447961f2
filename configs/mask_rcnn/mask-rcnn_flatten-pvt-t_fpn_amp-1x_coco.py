_base_ = './mask-rcnn_mirrorla-t_fpn_amp-1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearPVT',
        arch='t',
        attn_cfg=dict(type='FLattenAttention'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
