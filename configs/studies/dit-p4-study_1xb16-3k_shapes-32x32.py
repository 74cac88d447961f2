_base_ = '../_base_/protocols/sit-study_1xb16_shapes-32x32.py'

# 64 tokens in the place of S/2's 256, so that 3000 steps take two minutes of one core.
model = dict(backbone=dict(patch_size=4))
param_scheduler = dict(T_max=3000)
train_cfg = dict(max_iters=3000)
default_hooks = dict(checkpoint=dict(interval=500))
