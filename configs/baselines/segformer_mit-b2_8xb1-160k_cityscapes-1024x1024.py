_base_ = 'mmseg::segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)

# The authors' decoder of B2, which the paper's row counts, has 768 channels; mmseg's has 256.
# Whole images are tested, as with the other rows.
model = dict(decode_head=dict(channels=768), test_cfg=dict(_delete_=True, mode='whole'))
