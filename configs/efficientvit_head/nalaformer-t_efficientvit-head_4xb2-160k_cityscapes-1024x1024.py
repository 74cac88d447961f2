_base_ = './mirrorla-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
