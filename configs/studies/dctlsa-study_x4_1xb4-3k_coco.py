_base_ = '../_base_/protocols/dctlsa_x4_1xb16-1000k_div2k.py'

# Every method starts from the authors' x4 weights; the study sets the attention and the folders.
train_pipeline = [
    dict(type='mirrorla_mm.LoadImagePair'),
    dict(type='mirrorla_mm.PairedRandomCrop', size=48),
    dict(type='mirrorla_mm.PairedRandomFlip'),
    dict(type='mirrorla_mm.PackRestorationInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(
        data_root='data/coco',
        filter_cfg=dict(min_size=192),
        gt_dir='train2017',
        lr_dir=None,
        pipeline=train_pipeline,
    ),
)
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', by_epoch=False, eta_min=1e-6, T_max=3000
)
train_cfg = dict(max_iters=3000, val_interval=1000000)
default_hooks = dict(
    checkpoint=dict(interval=50, max_keep_ckpts=1, save_best=None, rule=None),
    logger=dict(interval=50),
)
