_base_ = 'mmdet::pvt/retinanet_pvtv2-b1_fpn_1x_coco.py'

custom_imports = dict(imports=['mirrorla_mm'], allow_failed_imports=False)
