_base_ = './flatten-swin-t.py'

# Swin-S has Swin-T's drop path in mmdet; UPerNet raises it, as mmseg does.
host = dict(arch='s', attn_cfg=dict(type='PolaAttention'))
