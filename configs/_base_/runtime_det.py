_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
# Whichever tool trains: an old checkpoint goes once the new one is whole, and never another's file.
default_hooks = dict(
    checkpoint=dict(type='mirrorla_mm.CheckpointHook', max_keep_ckpts=3, save_best='auto')
)
