_base_ = './mask-rcnn_mirrorla-t_fpn_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='b'), neck=dict(in_channels=[96, 192, 384, 512]))
