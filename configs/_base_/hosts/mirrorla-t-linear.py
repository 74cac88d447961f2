_base_ = './mirrorla-t.py'

host = dict(layout='linear')
