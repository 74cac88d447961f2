_base_ = './mirrorla-b.py'

host = dict(layout='linear')
