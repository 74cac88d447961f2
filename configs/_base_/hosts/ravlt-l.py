_base_ = './mirrorla-l.py'

host = dict(type='mirrorla_mm.RAVLT')
