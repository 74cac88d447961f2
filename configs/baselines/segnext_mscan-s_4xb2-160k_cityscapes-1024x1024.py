_base_ = [
    '../_base_/models/mirrorla_light-ham-head.py',
    'mmseg::_base_/datasets/cityscapes_1024x1024.py',
    '../_base_/schedules/adamw_poly_160k_head-10x.py',
    '../_base_/runtime_seg.py',
]

checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segnext/mscan_s_20230227-f33ccdf2.pth'
model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    backbone=dict(
        _delete_=True,
        type='MSCAN',
        embed_dims=[64, 128, 320, 512],
        mlp_ratios=[8, 8, 4, 4],
        depths=[2, 2, 4, 2],
        drop_path_rate=0.1,
        attention_kernel_sizes=[5, [1, 7], [1, 11], [1, 21]],
        attention_kernel_paddings=[2, [0, 3], [0, 5], [0, 10]],
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[128, 320, 512], in_index=[1, 2, 3]),
)
auto_scale_lr = dict(base_batch_size=8)
