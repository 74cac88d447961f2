_base_ = './cascade-mask-rcnn_mirrorla-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='l'), neck=dict(in_channels=[96, 192, 448, 640]))
