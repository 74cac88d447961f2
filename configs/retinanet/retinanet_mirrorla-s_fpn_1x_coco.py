_base_ = './retinanet_mirrorla-t_fpn_1x_coco.py'

model = dict(backbone=dict(arch='s'), neck=dict(in_channels=[128, 320, 512]))
