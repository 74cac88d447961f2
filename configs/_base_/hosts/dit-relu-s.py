# The control: all that dit-mirrorla-s has but the mirror.
host = dict(arch='s', attn_cfg=dict(type='ReLUAttention', gate=True, lepe_kernel=5))
