_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../schedules/slow_backbone.py',
]

# The head is mmdet's.
custom_imports = dict(imports=['mirrorla_mm', 'mmdet.models'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(type='mirrorla_mm.CheckpointHook', max_keep_ckpts=3))
# The recipe adds the host.
model = dict(backbone=dict(_delete_=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
