_base_ = './dctlsa_x4_8xb8-ema-250k_div2k.py'

model = dict(backbone=dict(attn_cfg=dict(type='ReLUAttention')))
load_from = 'work_dirs/dctlsa-relu_x2_8xb8-ema-500k_div2k/iter_500000.pth'
