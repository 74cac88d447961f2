_base_ = './mirrorla-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py'

model = dict(backbone=dict(arch='b'), decode_head=dict(in_channels=[192, 384, 512], channels=128))
