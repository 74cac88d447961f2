_base_ = [
    '../models/linear-swin_imagenet.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    '../runtime_cls.py',
    '../schedules/no_decay.py',
]

train_dataloader = dict(batch_size=128)
# As in FLatten's, Agent's and PolaFormer's code, and in Swin's own.
optim_wrapper = dict(
    type='mirrorla_mm.AmpOptimWrapper',
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
    clip_grad=dict(max_norm=5.0),
)
