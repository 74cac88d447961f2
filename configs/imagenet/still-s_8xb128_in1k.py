_base_ = '../_base_/protocols/ravlt_8xb128_in1k.py'

model = dict(
    backbone=dict(
        type='mirrorla_mm.RAVLT',
        arch='s',
        layout='linear',
        attn_cfg=dict(type='STILLAttention'),
    )
)
