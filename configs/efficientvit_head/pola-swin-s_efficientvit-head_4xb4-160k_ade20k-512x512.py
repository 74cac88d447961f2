_base_ = './pola-swin-t_efficientvit-head_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='s', drop_path_rate=0.3), decode_head=dict(channels=128))
