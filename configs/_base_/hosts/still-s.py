_base_ = './mirrorla-s.py'

host = dict(type='mirrorla_mm.RAVLT', layout='linear', attn_cfg=dict(type='STILLAttention'))
