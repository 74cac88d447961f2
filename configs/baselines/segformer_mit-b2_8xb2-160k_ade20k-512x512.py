_base_ = 'mmseg::segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)

# The authors' decoder of B2, which the paper's row counts, has 768 channels; mmseg's has 256.
model = dict(decode_head=dict(channels=768))
