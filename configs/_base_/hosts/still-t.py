_base_ = './mirrorla-t.py'

host = dict(type='mirrorla_mm.RAVLT', layout='linear', attn_cfg=dict(type='STILLAttention'))
