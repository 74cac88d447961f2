host = dict(type='mirrorla_mm.LinearPVT', arch='t', attn_cfg=dict(type='FLattenAttention'))
channels = [64, 128, 320, 512]
