_base_ = [
    '../models/light-ham-head.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../schedules/adamw_poly_160k.py',
    '../runtime_seg.py',
    '../schedules/no_decay.py',
]

model = dict(data_preprocessor=dict(size=(512, 512)), decode_head=dict(num_classes=150))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_base_.no_decay, head=dict(lr_mult=10.0))))
