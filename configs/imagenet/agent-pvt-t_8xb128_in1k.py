_base_ = '../_base_/protocols/pvt_8xb128_in1k.py'

# Agents per stage as in the authors' PVT-T.
model = dict(
    backbone=dict(attn_cfg=[dict(type='AgentAttention', agents=agents) for agents in (3, 4, 7, 7)])
)
