_base_ = './dctlsa-mirrorla_x3_8xb8-ema-250k_div2k.py'

model = dict(backbone=dict(embed_dims=56, num_heads=7))
load_from = 'work_dirs/dctlsa-mirrorla-c56_x2_8xb8-ema-500k_div2k/iter_500000.pth'
