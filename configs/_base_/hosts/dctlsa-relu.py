host = dict(attn_cfg=dict(type='ReLUAttention'))
