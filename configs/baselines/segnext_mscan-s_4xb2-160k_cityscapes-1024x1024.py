_base_ = [
    '../_base_/protocols/light-ham-head_4xb2-160k_cityscapes.py',
    '../_base_/hosts/mscan-s.py',
]

# This host takes no out_indices.
model = dict(
    backbone=dict(_base_.host, _delete_=True),
    decode_head=dict(in_channels=_base_.channels[1:], in_index=[1, 2, 3]),
)
