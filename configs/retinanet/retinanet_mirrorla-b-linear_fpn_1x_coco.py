_base_ = './retinanet_mirrorla-b_fpn_1x_coco.py'

model = dict(backbone=dict(layout='linear'))
