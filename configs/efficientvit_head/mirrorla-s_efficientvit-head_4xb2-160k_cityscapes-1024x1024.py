_base_ = './mirrorla-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py'

model = dict(backbone=dict(arch='s'), decode_head=dict(in_channels=[128, 320, 512], channels=128))
