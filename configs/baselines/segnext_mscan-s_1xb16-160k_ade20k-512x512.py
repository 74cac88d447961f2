_base_ = 'mmseg::segnext/segnext_mscan-s_1xb16-adamw-160k_ade20k-512x512.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
