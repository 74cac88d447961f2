# The control: all that dit-mirrorla-b has but the mirror.
host = dict(arch='b', attn_cfg=dict(type='ReLUAttention', gate=True, lepe_kernel=5))
