_base_ = [
    '../models/linear-swin_imagenet.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    '../runtime_cls.py',
    '../schedules/no_decay.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearPVT',
        arch='t',
        drop_path_rate=0.1,
        out_indices=(3,),
    ),
    head=dict(in_channels=512),
)
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    type='mirrorla_mm.AmpOptimWrapper', paramwise_cfg=dict(custom_keys=_base_.no_decay)
)
# FLatten's and Agent's settings of PVT, whose code multiplies rates by batch / 512: a shorter
# warm-up than Swin's, and a higher last rate, which ten more epochs hold.
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=2e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(max_epochs=310)
