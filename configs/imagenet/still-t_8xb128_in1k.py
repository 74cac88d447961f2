_base_ = '../_base_/protocols/ravlt_8xb128_in1k.py'

model = dict(
    backbone=dict(
        type='mirrorla_mm.RAVLT',
        arch='t',
        drop_path_rate=0.05,
        layout='linear',
        attn_cfg=dict(type='STILLAttention'),
    )
)
