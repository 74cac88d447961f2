_base_ = './flatten-pvt-t_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(attn_cfg=dict(type='PolaAttention')))
