_base_ = './mask-rcnn_flatten-pvt-t_fpn_amp-1x_coco.py'

model = dict(backbone=dict(attn_cfg=dict(type='PolaAttention')))
