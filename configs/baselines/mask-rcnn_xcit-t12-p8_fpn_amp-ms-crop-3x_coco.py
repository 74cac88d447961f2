_base_ = '../_base_/protocols/mask-rcnn_amp-ms-crop-3x_coco.py'

# One scale, stride 8, brought to four as XCiT's authors do.
model = dict(
    backbone=dict(
        type='mmpretrain.XCiT',
        patch_size=8,
        embed_dims=192,
        depth=12,
        num_heads=4,
        mlp_ratio=4,
        qkv_bias=True,
        layer_scale_init_value=1.0,
        tokens_norm=True,
        drop_path_rate=0.05,
        out_indices=(3, 5, 7, 11),
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/xcit/xcit-tiny-12-p8_3rdparty_in1k_20230213-8b02f8f5.pth',
            prefix='backbone.',
        ),
    ),
    neck=[
        dict(
            type='mmseg.Feature2Pyramid',
            embed_dim=192,
            rescales=[2, 1, 0.5, 0.25],
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
        dict(type='FPN', in_channels=[192, 192, 192, 192], out_channels=256, num_outs=5),
    ],
)
# XCiT's class token and its two last blocks serve classifiers alone, and get no gradient.
find_unused_parameters = True
