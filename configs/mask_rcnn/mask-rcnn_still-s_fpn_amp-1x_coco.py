_base_ = ['../_base_/protocols/mask-rcnn_amp-1x_coco.py', '../_base_/hosts/still-s.py']

model = dict(backbone=_base_.host, neck=dict(in_channels=_base_.channels))
