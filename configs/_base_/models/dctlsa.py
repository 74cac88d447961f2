model = dict(
    type='mirrorla_mm.Restorer',
    backbone=dict(type='mirrorla_mm.DCTLSA', upscale=4, attn_cfg=dict(type='LSA')),
    loss=dict(type='mirrorla_mm.L1Loss'),
)
