_base_ = './adamw_1x.py'

optim_wrapper = dict(
    type='mirrorla_mm.AmpOptimWrapper',
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
