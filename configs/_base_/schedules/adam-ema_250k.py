# SwinIR-light's protocol for x3 and x4, which start from x2: half the rate, half as long.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-4))
param_scheduler = dict(
    type='MultiStepLR', by_epoch=False, milestones=[125000, 200000, 225000, 237500], gamma=0.5
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=250000, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
custom_hooks = [dict(type='EMAHook', momentum=0.001, update_buffers=True)]
auto_scale_lr = dict(enable=False, base_batch_size=64)
