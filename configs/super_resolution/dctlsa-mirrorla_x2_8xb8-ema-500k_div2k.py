_base_ = './dctlsa_x2_8xb8-ema-500k_div2k.py'

model = dict(backbone=dict(attn_cfg=dict(type='ReLUAttention', reflection={})))
