_base_ = ['mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py', '../schedules/no_decay.py']

# RTMDet-Ins-L's neck, head and data; length and schedule are those of RTMDet with Swin, which too
# starts from a classifier.
max_epochs = 100
stage2_num_epochs = 10
base_lr = 1e-3
switch_epoch = max_epochs - stage2_num_epochs
custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(type='mirrorla_mm.CheckpointHook', save_best='auto'))
model = dict(
    # The statistics that the host's weights are trained with, not CSPNeXt's.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    # The recipe adds the host.
    backbone=dict(_delete_=True, out_indices=(1, 2, 3)),
)
train_cfg = dict(max_epochs=max_epochs, dynamic_intervals=[(switch_epoch, 1)])
optim_wrapper = dict(optimizer=dict(lr=base_lr), paramwise_cfg=dict(custom_keys=_base_.no_decay))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=base_lr * 0.05,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=switch_epoch,
        switch_pipeline=_base_.train_pipeline_stage2,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=128)
