_base_ = [
    '../_base_/protocols/efficientvit-head_4xb2-160k_cityscapes.py',
    '../_base_/hosts/still-t.py',
]

model = dict(backbone=_base_.host, decode_head=dict(in_channels=_base_.channels[1:], channels=96))
