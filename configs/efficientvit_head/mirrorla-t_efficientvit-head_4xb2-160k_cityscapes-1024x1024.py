_base_ = [
    '../_base_/models/mirrorla_efficientvit-head.py',
    'mmseg::_base_/datasets/cityscapes_1024x1024.py',
    '../_base_/schedules/adamw_poly_160k_head-10x.py',
    '../_base_/runtime_seg.py',
]

model = dict(data_preprocessor=dict(size=(1024, 1024)), decode_head=dict(final_expand=4))
auto_scale_lr = dict(base_batch_size=8)
