_base_ = './mask-rcnn_mirrorla-t_fpn_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
