_base_ = ['../_base_/protocols/sem-fpn_4xb4-80k_ade20k.py', '../_base_/hosts/still-t.py']

model = dict(backbone=_base_.host, neck=dict(in_channels=_base_.channels))
