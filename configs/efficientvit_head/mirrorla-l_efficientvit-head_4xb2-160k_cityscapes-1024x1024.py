_base_ = './mirrorla-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py'

model = dict(backbone=dict(arch='l'), decode_head=dict(in_channels=[192, 448, 640], channels=128))
