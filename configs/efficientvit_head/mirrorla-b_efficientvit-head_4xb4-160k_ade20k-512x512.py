_base_ = './mirrorla-t_efficientvit-head_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='b'), decode_head=dict(in_channels=[192, 384, 512], channels=128))
