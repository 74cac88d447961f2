host = dict(arch='b', attn_cfg=dict(type='SoftmaxAttention'))
