_base_ = '../_base_/protocols/swin_8xb128_in1k.py'

model = dict(backbone=dict(arch='s', drop_path_rate=0.3, attn_cfg=dict(type='PolaAttention')))
