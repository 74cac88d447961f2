# The published DiT of PolaFormer++, by authors of the paper: its files load as they are.
host = dict(arch='s', attn_cfg=dict(type='PolaPPAttention'))
