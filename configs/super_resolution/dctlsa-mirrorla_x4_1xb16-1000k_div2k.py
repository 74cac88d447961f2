_base_ = [
    '../_base_/protocols/dctlsa_x4_1xb16-1000k_div2k.py',
    '../_base_/hosts/dctlsa-mirrorla.py',
]

model = dict(backbone=_base_.host)
