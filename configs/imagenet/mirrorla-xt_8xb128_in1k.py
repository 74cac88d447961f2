_base_ = './mirrorla-t_8xb128_in1k.py'

model = dict(backbone=dict(arch='xt', drop_path_rate=0.05), neck=dict(in_channels=384))
