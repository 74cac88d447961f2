_base_ = '../_base_/protocols/sem-fpn_4xb4-80k_ade20k.py'

# mmpretrain's "small" is the authors' B1.
model = dict(
    backbone=dict(
        type='mmpretrain.VAN',
        arch='small',
        drop_path_rate=0.1,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/van/van-small_8xb128_in1k_20220501-17bc91aa.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
