_base_ = './adamw_poly_160k.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))))
