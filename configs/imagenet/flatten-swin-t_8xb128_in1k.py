_base_ = [
    '../_base_/models/linear-swin_imagenet.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    '../_base_/runtime_cls.py',
]

model = dict(backbone=dict(attn_cfg=dict(type='FLattenAttention')))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    type='mirrorla_mm.AmpOptimWrapper',
    paramwise_cfg=dict(
        custom_keys={
            'reflection': dict(decay_mult=0.0),
            '.position': dict(decay_mult=0.0),
            '.query_bias': dict(decay_mult=0.0),
            '.key_bias': dict(decay_mult=0.0),
        }
    ),
)
