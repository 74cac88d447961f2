_base_ = './dctlsa-mirrorla_x2_8xb8-ema-500k_div2k.py'

model = dict(backbone=dict(embed_dims=56, num_heads=7))
