_base_ = './flatten-pvt-t.py'

host = dict(attn_cfg=dict(type='PolaAttention'))
