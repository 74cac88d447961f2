_base_ = './mirrorla-l_8xb128_in1k.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer'))
