_base_ = './mirrorla-s_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='b'),
    decode_head=dict(in_channels=[96, 192, 384, 512]),
    auxiliary_head=dict(in_channels=384),
)
