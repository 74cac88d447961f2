_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../schedules/no_decay.py',
    '../schedules/backbone_norms.py',
]

# The head is mmdet's.
custom_imports = dict(imports=['mirrorla_mm', 'mmdet.models'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(type='mirrorla_mm.CheckpointHook', max_keep_ckpts=3))
# The recipe adds the host.
model = dict(backbone=dict(_delete_=True))
# The backbone learns at a tenth of the rate, these parts of it without decay.
slow = {
    key: dict(lr_mult=0.1, decay_mult=0.0) for key in (*_base_.no_decay, *_base_.backbone_norms)
}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=slow))
