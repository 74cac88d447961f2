_base_ = './dctlsa_x3_1xb16-1000k_div2k.py'

model = dict(backbone=dict(attn_cfg=dict(type='ReLUAttention')))
