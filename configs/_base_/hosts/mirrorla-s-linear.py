_base_ = './mirrorla-s.py'

host = dict(layout='linear')
