_base_ = '../_base_/protocols/ravlt_8xb128_in1k.py'

model = dict(backbone=dict(arch='xt', layout='linear'), neck=dict(in_channels=384))
