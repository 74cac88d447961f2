_base_ = './mask-rcnn_mirrorla-s_fpn_amp-1x_coco.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
