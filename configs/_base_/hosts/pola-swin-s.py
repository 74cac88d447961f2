_base_ = './flatten-swin-t.py'

host = dict(arch='s', drop_path_rate=0.3, attn_cfg=dict(type='PolaAttention'))
