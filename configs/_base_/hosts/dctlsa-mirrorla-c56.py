# 7 heads of 8 channels, so that every channel has a partner to be reflected with.
host = dict(embed_dims=56, num_heads=7, attn_cfg=dict(type='ReLUAttention', reflection={}))
