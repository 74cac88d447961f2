_base_ = 'adam-ema_500k.py'

# SwinIR-light's protocol for x3 and x4, which start from x2: half the rate, half as long.
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = dict(milestones=[125000, 200000, 225000, 237500])
train_cfg = dict(max_iters=250000)
