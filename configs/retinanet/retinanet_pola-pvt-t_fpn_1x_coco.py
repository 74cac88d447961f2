_base_ = './retinanet_flatten-pvt-t_fpn_1x_coco.py'

model = dict(backbone=dict(attn_cfg=dict(type='PolaAttention')))
