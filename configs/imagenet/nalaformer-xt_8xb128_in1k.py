_base_ = './mirrorla-xt_8xb128_in1k.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
