_base_ = ['../_base_/protocols/upernet_8xb2-160k_ade20k.py', '../_base_/hosts/still-s.py']

model = dict(
    backbone=_base_.host,
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
