_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../schedules/no_decay.py',
]

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='mirrorla_mm.CheckpointHook', max_keep_ckpts=3, save_best='auto')
)
# The recipe adds the host; the neck makes the fourth scale.
model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3)))
# The backbone learns at a tenth of the rate, these parts of it without decay.
slow = {key: dict(lr_mult=0.1, decay_mult=0.0) for key in _base_.no_decay}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=slow))
