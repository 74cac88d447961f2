_base_ = 'mmseg::segformer/segformer_mit-b1_8xb1-160k_cityscapes-1024x1024.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)

# Whole images are tested, as with the other rows.
model = dict(test_cfg=dict(_delete_=True, mode='whole'))
