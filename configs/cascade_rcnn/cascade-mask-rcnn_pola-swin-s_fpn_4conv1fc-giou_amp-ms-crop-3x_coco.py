_base_ = './cascade-mask-rcnn_mirrorla-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearSwin',
        arch='s',
        drop_path_rate=0.3,
        attn_cfg=dict(type='PolaAttention'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
