# The authors' own attention.
host = dict(attn_cfg=dict(type='LSA'))
