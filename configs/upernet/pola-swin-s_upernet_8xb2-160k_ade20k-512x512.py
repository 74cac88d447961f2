_base_ = ['../_base_/protocols/upernet_8xb2-160k_ade20k.py', '../_base_/hosts/pola-swin-s.py']

model = dict(
    backbone=dict(_base_.host, drop_path_rate=0.3),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
