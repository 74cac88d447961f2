_base_ = ['../_base_/protocols/dino-4scale_8xb2-12e_coco.py', '../_base_/hosts/mirrorla-s.py']

model = dict(backbone=_base_.host, neck=dict(in_channels=_base_.channels[1:]))
