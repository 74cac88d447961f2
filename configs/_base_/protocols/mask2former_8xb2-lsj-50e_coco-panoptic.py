_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../schedules/slow_backbone.py',
]

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(type='mirrorla_mm.CheckpointHook'))
# The recipe adds the host.
model = dict(backbone=dict(_delete_=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
