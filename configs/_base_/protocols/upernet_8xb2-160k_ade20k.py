_base_ = [
    '../models/upernet.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../schedules/adamw_poly_160k.py',
    '../runtime_seg.py',
    '../schedules/no_decay.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
