_base_ = '../_base_/protocols/pvt_8xb128_in1k.py'

model = dict(backbone=dict(attn_cfg=dict(type='FLattenAttention')))
