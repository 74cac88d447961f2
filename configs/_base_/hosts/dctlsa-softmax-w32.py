# "DCTLSA-Softmax" of the paper's Table 4: its memory fits windows of 32x32.
host = dict(window_size=32, attn_cfg=dict(type='SoftmaxAttention'))
