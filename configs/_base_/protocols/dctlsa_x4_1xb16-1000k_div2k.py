_base_ = [
    '../models/dctlsa.py',
    '../datasets/div2k.py',
    '../schedules/adam_1000k.py',
    '../runtime_sr.py',
]

model = dict(backbone=dict(upscale=4))
train_dataloader = dict(dataset=dict(scale=4))
val_dataloader = dict(dataset=dict(scale=4))
test_dataloader = dict(dataset=dict(scale=4))
