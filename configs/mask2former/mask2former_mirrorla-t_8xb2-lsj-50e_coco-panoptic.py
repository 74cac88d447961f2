_base_ = [
    '../_base_/protocols/mask2former_8xb2-lsj-50e_coco-panoptic.py',
    '../_base_/hosts/mirrorla-t.py',
]

model = dict(backbone=_base_.host, panoptic_head=dict(in_channels=_base_.channels))
