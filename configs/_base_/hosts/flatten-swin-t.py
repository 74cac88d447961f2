host = dict(
    type='mirrorla_mm.LinearSwin',
    arch='t',
    drop_path_rate=0.2,
    attn_cfg=dict(type='FLattenAttention'),
)
channels = [96, 192, 384, 768]
