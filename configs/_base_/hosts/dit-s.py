host = dict(arch='s', attn_cfg=dict(type='SoftmaxAttention'))
