_base_ = [
    '../_base_/models/retinanet.py',
    './_base_/demo_detection.py',
    './_base_/demo_runtime.py',
]
default_scope = 'mmdet'

# Pre-training handed on: the backbone starts from the segmentor that the quickstart trains first.
pretrained = '{{$MIRRORLA_DEMO_PRETRAINED:work_dirs/quickstart/segmentor/epoch_5.pth}}'

model = dict(
    backbone=dict(
        type='mirrorla_mm.MirrorLA',
        arch='xt',
        layout='linear',
        init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=pretrained),
    ),
    neck=dict(
        in_channels=[64, 128, 384],
        out_channels=64,
        add_extra_convs=False,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=5,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(ratios=[1.0], strides=[8, 16, 32]),
        # Boxes are judged by their overlap, by which NMS tells a second box from a neighbour.
        reg_decoded_bbox=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    ),
    # One box an object: of 1427 drawn objects 4 pairs have boxes that overlap by more.
    test_cfg=dict(nms=dict(type='nms', iou_threshold=0.4, class_agnostic=True)),
)

# Boxes need more time than label maps.
_base_.train_cfg.update(max_epochs=9, val_interval=9)
_base_.param_scheduler[1].end = 9
