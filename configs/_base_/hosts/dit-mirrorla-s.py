# The plain state without rank augmentation, as in the published DiT of PolaFormer++.
host = dict(
    arch='s',
    attn_cfg=dict(type='ReLUAttention', gate=True, lepe_kernel=5, reflection={}),
)
