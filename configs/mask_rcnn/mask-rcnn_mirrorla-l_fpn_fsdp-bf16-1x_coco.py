_base_ = ['../_base_/protocols/mask-rcnn_amp-1x_coco.py', '../_base_/hosts/mirrorla-l.py']

model = dict(backbone=_base_.host, neck=dict(in_channels=_base_.channels))

# Parameters, gradients and optimizer states are shared out over the devices, see docs/at_scale.md.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mirrorla_mm.FSDPStrategy',
    model_wrapper=dict(
        use_orig_params=True,
        auto_wrap_policy=dict(type='mirrorla_mm.backbones.layers.wrap_blocks'),
    ),
    state_dict_cfg='full',
)
optim_wrapper = dict(dtype='bfloat16', use_fsdp=True)
