_base_ = './pola-swin-t_8xb128_in1k.py'

model = dict(backbone=dict(arch='s', drop_path_rate=0.3))
