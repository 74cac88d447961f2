_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

# The recipe adds the host. Its maps are the three that FPN(start_level=1) would take of four: an
# output that nothing uses has norm weights without gradients, which stops DistributedDataParallel.
model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3)), neck=dict(start_level=0))
