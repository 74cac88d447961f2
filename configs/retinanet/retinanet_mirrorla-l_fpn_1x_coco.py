_base_ = './retinanet_mirrorla-t_fpn_1x_coco.py'

model = dict(backbone=dict(arch='l'), neck=dict(in_channels=[192, 448, 640]))
