_base_ = '../runtime_diffusion.py'

# SiT's process on drawn shapes in pixels; the study sets the attention, a recipe the length.
model = dict(
    type='mirrorla_mm.DiffusionModel',
    backbone=dict(
        type='mirrorla_mm.DiT',
        arch=dict(embed_dims=64, depth=3, num_heads=4),
        in_channels=3,
        num_classes=6,
        learn_sigma=False,
        attn_cfg=dict(type='SoftmaxAttention'),
    ),
    process=dict(type='mirrorla_mm.Interpolant', sampler='euler', sampling_steps=25),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mirrorla_mm.DrawnShapes',
        length=60000,
        pipeline=[dict(type='mirrorla_mm.PackDiffusionInputs')],
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.0))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, eta_min=1e-5)
train_cfg = dict(type='IterBasedTrainLoop')
custom_hooks = [dict(type='EMAHook', momentum=0.02)]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=50))
