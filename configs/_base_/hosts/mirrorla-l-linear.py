_base_ = './mirrorla-l.py'

host = dict(layout='linear')
