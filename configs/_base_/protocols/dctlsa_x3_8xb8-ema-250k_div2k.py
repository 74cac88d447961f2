_base_ = [
    '../models/dctlsa.py',
    '../datasets/div2k.py',
    '../schedules/adam-ema_250k.py',
    '../runtime_sr.py',
]

model = dict(backbone=dict(upscale=3))
train_dataloader = dict(batch_size=8, dataset=dict(scale=3))
val_dataloader = dict(dataset=dict(scale=3))
test_dataloader = dict(dataset=dict(scale=3))
