_base_ = './mask-rcnn_mirrorla-t_fpn_amp-1x_coco.py'

model = dict(backbone=dict(arch='l'), neck=dict(in_channels=[96, 192, 448, 640]))
