_base_ = './mirrorla-s.py'

host = dict(type='mirrorla_mm.RAVLT')
