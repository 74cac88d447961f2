_base_ = 'mmseg::_base_/models/upernet_r50.py'

# The recipe adds the host.
model = dict(pretrained=None, backbone=dict(_delete_=True))
