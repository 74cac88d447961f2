_base_ = './retinanet_mirrorla-s_fpn_1x_coco.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
