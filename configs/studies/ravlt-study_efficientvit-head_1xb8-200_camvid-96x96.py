# The host of tools/studies/compare.py, small enough that a row with three seeds takes minutes on a
# CPU. The study sets the attention, the seed, the data root and, if asked to, the iterations.
_base_ = ['../_base_/runtime_seg.py', '../_base_/schedules/no_decay.py']

# The classes of ADE20K that CamVid's road scenes have; other pixels are ignored.
metainfo = dict(
    classes=(
        'road',
        'building',
        'sky',
        'tree',
        'car',
        'sidewalk',
        'signboard',
        'fence',
        'pole',
        'person',
        'bicycle',
    ),
    palette=[
        (140, 140, 140),
        (180, 120, 120),
        (6, 230, 230),
        (4, 200, 3),
        (0, 102, 200),
        (235, 255, 7),
        (255, 5, 153),
        (255, 184, 6),
        (51, 0, 255),
        (150, 5, 61),
        (255, 245, 0),
    ],
)
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(96, 96),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mirrorla_mm.RAVLT',
        arch=dict(embed_dims=(16, 32, 64, 96), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 6)),
        layout='linear',
        attn_cfg=dict(type='MirrorAttention'),
    ),
    decode_head=dict(
        type='mirrorla_mm.EfficientViTHead',
        in_channels=(32, 64, 96),
        channels=32,
        num_blocks=1,
        num_classes=11,
        norm_cfg=norm_cfg,
        dropout_ratio=0,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    train_cfg={},
    test_cfg=dict(mode='whole'),
)

data_root = 'data/ade'
resize = dict(type='Resize', scale=(160, 120), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    resize,
    dict(type='RandomCrop', crop_size=(96, 96), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])

train_cfg = dict(type='IterBasedTrainLoop', max_iters=200, val_interval=200)
val_cfg = dict(type='ValLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=_base_.no_decay),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=200, by_epoch=False),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=25, log_metric_by_epoch=False),
    checkpoint=dict(
        type='mirrorla_mm.CheckpointHook', by_epoch=False, interval=100, max_keep_ckpts=1
    ),
)
# A row may be stopped and taken up again: the order of the data follows from the seed alone.
resume = True
