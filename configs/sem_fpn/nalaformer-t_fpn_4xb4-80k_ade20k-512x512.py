_base_ = './mirrorla-t_fpn_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
