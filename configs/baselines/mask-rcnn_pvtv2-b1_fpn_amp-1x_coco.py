_base_ = '../_base_/protocols/mask-rcnn_amp-1x_coco.py'

model = dict(
    backbone=dict(
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=64,
        num_layers=[2, 2, 2, 2],
        init_cfg=dict(
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b1.pth'
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
