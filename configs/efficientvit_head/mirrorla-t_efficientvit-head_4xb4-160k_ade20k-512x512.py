_base_ = [
    '../_base_/models/mirrorla_efficientvit-head.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_poly_160k_head-10x.py',
    '../_base_/runtime_seg.py',
]

model = dict(data_preprocessor=dict(size=(512, 512)), decode_head=dict(num_classes=150))
