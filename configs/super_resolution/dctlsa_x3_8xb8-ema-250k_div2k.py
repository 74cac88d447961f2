_base_ = [
    '../_base_/models/dctlsa.py',
    '../_base_/datasets/div2k.py',
    '../_base_/schedules/adam-ema_250k.py',
    '../_base_/runtime_sr.py',
]

model = dict(backbone=dict(upscale=3))
train_dataloader = dict(batch_size=8, dataset=dict(scale=3))
val_dataloader = dict(dataset=dict(scale=3))
test_dataloader = dict(dataset=dict(scale=3))
load_from = 'work_dirs/dctlsa_x2_8xb8-ema-500k_div2k/iter_500000.pth'
