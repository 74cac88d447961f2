_base_ = './cascade-mask-rcnn_mirrorla-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
