_base_ = './swin_8xb128_in1k.py'

# FLatten's and Agent's settings of PVT: a shorter warm-up, a higher last rate, nothing clipped.
optim_wrapper = dict(clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mirrorla_mm.LinearPVT',
        arch='t',
        drop_path_rate=0.1,
        attn_cfg=dict(type='FLattenAttention'),
        out_indices=(3,),
    ),
    head=dict(in_channels=512),
)
