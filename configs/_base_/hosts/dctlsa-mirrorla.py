# Heads of 11 channels, as the authors' weights have them: five pairs are reflected, the last
# channel is rectified alone. The paper does not say what it did; this is our reading of it.
host = dict(attn_cfg=dict(type='ReLUAttention', reflection={}))
