_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

# The three stages that FPN(start_level=1) would take of four: an output that nothing uses has
# norm weights without gradients, which stops DistributedDataParallel.
# norm_eval, here and in all dense models, as in the host's own code: with few pictures per device
# the statistics of ImageNet are better. Without ImageNet weights set it to False.
model = dict(
    backbone=dict(
        _delete_=True, type='mirrorla_mm.MirrorLA', arch='t', out_indices=(1, 2, 3), norm_eval=True
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
