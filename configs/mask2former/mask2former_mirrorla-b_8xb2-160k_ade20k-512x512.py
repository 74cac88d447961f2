_base_ = ['../_base_/protocols/mask2former_8xb2-160k_ade20k.py', '../_base_/hosts/mirrorla-b.py']

model = dict(backbone=_base_.host, decode_head=dict(in_channels=_base_.channels))
