_base_ = './dctlsa-mirrorla_x4_1xb16-1000k_div2k.py'

model = dict(backbone=dict(embed_dims=56, num_heads=7))
