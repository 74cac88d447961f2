model = dict(
    type='mirrorla_mm.Restorer',
    backbone=dict(type='mirrorla_mm.DCTLSA'),
    loss=dict(type='mirrorla_mm.L1Loss'),
)
