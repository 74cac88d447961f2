_base_ = '../_base_/protocols/sit-study_1xb16_shapes-32x32.py'

# 256 tokens, as in S/2.
param_scheduler = dict(T_max=400)
train_cfg = dict(max_iters=400)
default_hooks = dict(checkpoint=dict(interval=100))
