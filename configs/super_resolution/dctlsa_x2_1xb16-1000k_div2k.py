_base_ = [
    '../_base_/models/dctlsa.py',
    '../_base_/datasets/div2k.py',
    '../_base_/schedules/adam_1000k.py',
    '../_base_/runtime_sr.py',
]

model = dict(backbone=dict(upscale=2))
train_dataloader = dict(dataset=dict(scale=2))
val_dataloader = dict(dataset=dict(scale=2))
test_dataloader = dict(dataset=dict(scale=2))
