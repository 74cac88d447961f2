# The same from trained weights of another scale: half the rate, half as long.
_base_ = './adam-ema_500k.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = dict(milestones=[125000, 200000, 225000, 237500])
train_cfg = dict(max_iters=250000)
