_base_ = './mirrorla-s_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='l'),
    decode_head=dict(in_channels=[96, 192, 448, 640]),
    auxiliary_head=dict(in_channels=448),
)
