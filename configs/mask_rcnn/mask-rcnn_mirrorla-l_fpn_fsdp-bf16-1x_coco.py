_base_ = './mask-rcnn_mirrorla-l_fpn_amp-1x_coco.py'

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
