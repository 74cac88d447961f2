_base_ = './flatten-swin-t_8xb128_in1k.py'

# Linear in all stages: that has the 30 M parameters of Tab. 7, two stages have 28.5 M.
model = dict(backbone=dict(layout='linear', attn_cfg=dict(type='InLineAttention')))
