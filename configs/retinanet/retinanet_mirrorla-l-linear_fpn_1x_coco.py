_base_ = './retinanet_mirrorla-l_fpn_1x_coco.py'

model = dict(backbone=dict(layout='linear'))
