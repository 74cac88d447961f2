_base_ = ['../_base_/protocols/rtmdet-ins_4xb32-100e_coco.py', '../_base_/hosts/mirrorla-b.py']

model = dict(backbone=_base_.host, neck=dict(in_channels=_base_.channels[1:]))
