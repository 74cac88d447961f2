_base_ = 'mmseg::_base_/schedules/schedule_160k.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01),
    # Of the backbone: protocols name 'head' for a rate of its own, and mmengine asks no more of
    # a part that is named, so that the head's norms decay, as those of mmseg's SegFormer do.
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False),
]
# Whichever tool trains: an old checkpoint goes once the new one is whole, and never another's file.
default_hooks = dict(
    checkpoint=dict(type='mirrorla_mm.CheckpointHook', max_keep_ckpts=3, save_best='mIoU')
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
