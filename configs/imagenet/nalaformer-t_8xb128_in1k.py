_base_ = '../_base_/protocols/ravlt_8xb128_in1k.py'

model = dict(backbone=dict(type='mirrorla_mm.NaLaFormer', arch='t'))
