_base_ = './mirrorla-t.py'

host = dict(type='mirrorla_mm.NaLaFormer')
