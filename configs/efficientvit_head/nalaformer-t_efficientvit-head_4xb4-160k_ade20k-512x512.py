_base_ = './mirrorla-t_efficientvit-head_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
