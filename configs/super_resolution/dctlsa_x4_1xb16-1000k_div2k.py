_base_ = [
    '../_base_/models/dctlsa.py',
    '../_base_/datasets/div2k.py',
    '../_base_/schedules/adam_1000k.py',
    '../_base_/runtime_sr.py',
]

model = dict(backbone=dict(upscale=4))
train_dataloader = dict(dataset=dict(scale=4))
val_dataloader = dict(dataset=dict(scale=4))
test_dataloader = dict(dataset=dict(scale=4))
