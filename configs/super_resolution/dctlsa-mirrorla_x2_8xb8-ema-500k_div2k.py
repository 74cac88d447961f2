_base_ = [
    '../_base_/protocols/dctlsa_x2_8xb8-ema-500k_div2k.py',
    '../_base_/hosts/dctlsa-mirrorla.py',
]

model = dict(backbone=_base_.host)
