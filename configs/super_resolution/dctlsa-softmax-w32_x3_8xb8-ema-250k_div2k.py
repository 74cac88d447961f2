_base_ = './dctlsa_x3_8xb8-ema-250k_div2k.py'

model = dict(backbone=dict(window_size=32, attn_cfg=dict(type='SoftmaxAttention')))
load_from = 'work_dirs/dctlsa-softmax-w32_x2_8xb8-ema-500k_div2k/iter_500000.pth'
