_base_ = 'runtime_iters.py'

default_hooks = dict(checkpoint=dict(interval=5000, save_best='PSNR', rule='greater'))
