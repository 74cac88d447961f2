_base_ = 'mmseg::_base_/default_runtime.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
