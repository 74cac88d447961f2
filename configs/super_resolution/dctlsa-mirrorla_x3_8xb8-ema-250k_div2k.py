_base_ = [
    '../_base_/protocols/dctlsa_x3_8xb8-ema-250k_div2k.py',
    '../_base_/hosts/dctlsa-mirrorla.py',
]

model = dict(backbone=_base_.host)
load_from = 'work_dirs/dctlsa-mirrorla_x2_8xb8-ema-500k_div2k/iter_500000.pth'
