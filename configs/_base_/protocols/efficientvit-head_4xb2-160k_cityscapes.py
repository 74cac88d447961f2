_base_ = [
    '../models/efficientvit-head.py',
    'mmseg::_base_/datasets/cityscapes_1024x1024.py',
    '../schedules/adamw_poly_160k.py',
    '../runtime_seg.py',
    '../schedules/no_decay.py',
]

model = dict(data_preprocessor=dict(size=(1024, 1024)), decode_head=dict(final_expand=4))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_base_.no_decay, head=dict(lr_mult=10.0))))
auto_scale_lr = dict(base_batch_size=8)
