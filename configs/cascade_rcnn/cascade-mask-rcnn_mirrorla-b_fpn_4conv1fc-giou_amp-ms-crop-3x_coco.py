_base_ = './cascade-mask-rcnn_mirrorla-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='b'), neck=dict(in_channels=[96, 192, 384, 512]))
