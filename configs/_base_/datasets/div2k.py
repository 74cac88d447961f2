# Images of 64x64 pixels in, whatever the scale, from DIV2K's 800 for training; the five benchmarks
# of the paper's Table 4. A config names its scale for both.
data_root = 'data/sr/'
train_pipeline = [
    dict(type='mirrorla_mm.LoadImagePair'),
    dict(type='mirrorla_mm.PairedRandomCrop', size=64),
    dict(type='mirrorla_mm.PairedRandomFlip'),
    dict(type='mirrorla_mm.PackRestorationInputs'),
]
test_pipeline = [
    dict(type='mirrorla_mm.LoadImagePair'),
    dict(type='mirrorla_mm.PackRestorationInputs'),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mirrorla_mm.SuperResolutionDataset',
        scale=4,
        data_root=data_root + 'DIV2K',
        gt_dir='DIV2K_train_HR',
        lr_dir='DIV2K_train_LR_bicubic/X{scale}',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mirrorla_mm.SuperResolutionDataset',
        scale=4,
        data_root=data_root,
        sets=['Set5'],
        lr_dir='LR_bicubic/X{scale}',
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mirrorla_mm.SuperResolutionDataset',
        scale=4,
        data_root=data_root,
        sets=['Set5', 'Set14', 'BSDS100', 'Urban100', 'Manga109'],
        lr_dir='LR_bicubic/X{scale}',
        pipeline=test_pipeline,
    ),
)
val_evaluator = [dict(type='mirrorla_mm.PSNR'), dict(type='mirrorla_mm.SSIM')]
test_evaluator = val_evaluator
