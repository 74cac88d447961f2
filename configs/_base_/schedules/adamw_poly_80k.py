_base_ = 'mmseg::_base_/schedules/schedule_80k.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
)
# The base's eta_min is this learning rate: nothing would decay.
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=80000, by_epoch=False)]
# Whichever tool trains: an old checkpoint goes once the new one is whole, and never another's file.
default_hooks = dict(
    checkpoint=dict(type='mirrorla_mm.CheckpointHook', max_keep_ckpts=3, save_best='mIoU')
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
