_base_ = './pola-swin-t_light-ham-head_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='s', drop_path_rate=0.3))
