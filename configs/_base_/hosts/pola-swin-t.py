_base_ = './flatten-swin-t.py'

host = dict(attn_cfg=dict(type='PolaAttention'))
