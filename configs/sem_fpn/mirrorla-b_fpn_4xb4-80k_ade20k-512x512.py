_base_ = './mirrorla-t_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(arch='b'), neck=dict(in_channels=[96, 192, 384, 512]))
