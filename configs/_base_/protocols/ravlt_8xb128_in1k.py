_base_ = [
    '../models/ravlt_imagenet.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    '../runtime_cls.py',
    '../schedules/no_decay.py',
]

train_dataloader = dict(
    batch_size=128, sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True)
)
optim_wrapper = dict(
    type='mirrorla_mm.AmpOptimWrapper', paramwise_cfg=dict(custom_keys=_base_.no_decay)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
# DeiT's decay, 0.99996 an iteration at batch 512.
custom_hooks = [dict(type='EMAHook', momentum=8e-5, priority='ABOVE_NORMAL')]
