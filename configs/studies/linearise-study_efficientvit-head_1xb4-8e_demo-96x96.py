# The teacher of tools/studies/linearise.py: softmax attention in stages 3 and 4, small enough that
# the whole study takes minutes on a CPU. The study draws the scenes and sets the seed.
_base_ = [
    '../_base_/models/efficientvit-head.py',
    '../quickstart/_base_/demo_segmentation.py',
    '../quickstart/_base_/demo_runtime.py',
]
default_scope = 'mmseg'

model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(
        type='mirrorla_mm.MirrorLA',
        arch=dict(embed_dims=(16, 32, 64, 96), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 6)),
        layout='hybrid',
    ),
    decode_head=dict(
        in_channels=(32, 64, 96),
        channels=32,
        num_blocks=1,
        num_classes=6,
        norm_cfg=dict(type='BN'),
        dropout_ratio=0,
    ),
)

for _loader in (_base_.train_dataloader, _base_.val_dataloader, _base_.test_dataloader):
    _loader.dataset.pipeline = [
        dict(_step, scale=(96, 96)) if _step['type'] == 'Resize' else _step
        for _step in _loader.dataset.pipeline
    ]
    _loader.update(num_workers=0, persistent_workers=False)
_base_.train_dataloader.batch_size = 4
optim_wrapper = dict(optimizer=dict(lr=2e-3))
_base_.train_cfg.update(max_epochs=8, val_interval=8)
_base_.param_scheduler[1].end = 8
