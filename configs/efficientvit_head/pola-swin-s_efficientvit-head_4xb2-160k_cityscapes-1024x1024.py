_base_ = './pola-swin-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py'

model = dict(backbone=dict(arch='s', drop_path_rate=0.3), decode_head=dict(channels=128))
