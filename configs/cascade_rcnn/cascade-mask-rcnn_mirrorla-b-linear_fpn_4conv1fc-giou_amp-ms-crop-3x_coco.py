_base_ = './cascade-mask-rcnn_mirrorla-b_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(layout='linear'))
