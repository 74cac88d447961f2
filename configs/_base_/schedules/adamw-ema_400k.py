# DiT's and SiT's protocol: a constant rate, neither weight decay nor warm-up nor clipping.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.0))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=400000)
# The checkpoint's weights are the average's.
custom_hooks = [dict(type='EMAHook', momentum=0.0001)]
auto_scale_lr = dict(enable=False, base_batch_size=256)
