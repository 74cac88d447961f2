model = dict(
    type='ImageClassifier',
    backbone=dict(type='mirrorla_mm.MirrorLA', out_indices=(3,), out_norm=False),
    neck=dict(type='mirrorla_mm.ProjectionNeck', in_channels=512, out_channels=1024),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    init_cfg=[
        dict(type='TruncNormal', layer=['Linear', 'Conv2d'], std=0.02, bias=0.0),
        dict(type='Constant', layer=['LayerNorm', 'BatchNorm2d'], val=1.0, bias=0.0),
    ],
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
