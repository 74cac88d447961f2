_base_ = [
    '../models/dctlsa.py',
    '../datasets/div2k.py',
    '../schedules/adam_1000k.py',
    '../runtime_sr.py',
]

model = dict(backbone=dict(upscale=2))
train_dataloader = dict(dataset=dict(scale=2))
val_dataloader = dict(dataset=dict(scale=2))
test_dataloader = dict(dataset=dict(scale=2))
