_base_ = './mirrorla-t_efficientvit-head_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='s'), decode_head=dict(in_channels=[128, 320, 512], channels=128))
