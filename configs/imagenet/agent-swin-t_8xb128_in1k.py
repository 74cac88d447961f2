_base_ = '../_base_/protocols/swin_8xb128_in1k.py'

# Attention and agents per stage as in the authors' Swin-T.
model = dict(
    backbone=dict(
        layout=('linear', 'linear', 'linear', 'softmax'),
        attn_cfg=[dict(type='AgentAttention', agents=agents) for agents in (3, 4, 7, 7)],
    )
)
