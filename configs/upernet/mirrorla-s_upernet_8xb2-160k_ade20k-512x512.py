_base_ = [
    '../_base_/models/mirrorla_upernet.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_poly_160k.py',
    '../_base_/runtime_seg.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
train_dataloader = dict(batch_size=2)
