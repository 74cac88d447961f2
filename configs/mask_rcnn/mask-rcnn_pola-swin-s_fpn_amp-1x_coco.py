_base_ = './mask-rcnn_pola-swin-t_fpn_amp-1x_coco.py'

model = dict(backbone=dict(arch='s', drop_path_rate=0.3))
