_base_ = './mirrorla-b.py'

host = dict(type='mirrorla_mm.RAVLT')
