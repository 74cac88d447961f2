_base_ = [
    '../_base_/models/efficientvit-head.py',
    './_base_/demo_segmentation.py',
    './_base_/demo_runtime.py',
]
default_scope = 'mmseg'

model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(type='mirrorla_mm.MirrorLA', arch='xt', layout='linear'),
    decode_head=dict(
        in_channels=[64, 128, 384], channels=48, num_classes=6, norm_cfg=dict(type='BN')
    ),
)

# Label maps need less time than boxes.
_base_.train_cfg.update(max_epochs=5, val_interval=5)
_base_.param_scheduler[1].end = 5
