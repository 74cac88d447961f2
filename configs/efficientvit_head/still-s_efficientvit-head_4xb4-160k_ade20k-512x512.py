_base_ = [
    '../_base_/protocols/efficientvit-head_4xb4-160k_ade20k.py',
    '../_base_/hosts/still-s.py',
]

model = dict(backbone=_base_.host, decode_head=dict(in_channels=_base_.channels[1:], channels=128))
