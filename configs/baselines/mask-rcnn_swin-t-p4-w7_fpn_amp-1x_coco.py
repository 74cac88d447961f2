_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
optim_wrapper = dict(type='mirrorla_mm.AmpOptimWrapper')
