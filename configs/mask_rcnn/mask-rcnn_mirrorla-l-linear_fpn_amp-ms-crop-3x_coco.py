_base_ = './mask-rcnn_mirrorla-l_fpn_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(layout='linear'))
