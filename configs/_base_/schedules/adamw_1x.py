_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

# Weight decay would pull the reflections' angles to 0, which is an angle like any other, and shrink
# vectors of which only the direction counts.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(reflection=dict(decay_mult=0.0))),
)
