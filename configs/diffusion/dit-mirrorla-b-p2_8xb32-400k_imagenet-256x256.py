_base_ = [
    '../_base_/protocols/dit_8xb32-400k_imagenet-256x256.py',
    '../_base_/hosts/dit-mirrorla-b.py',
]

model = dict(backbone=_base_.host)
