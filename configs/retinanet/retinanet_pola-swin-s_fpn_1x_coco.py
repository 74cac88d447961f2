_base_ = './retinanet_pola-swin-t_fpn_1x_coco.py'

model = dict(backbone=dict(arch='s', drop_path_rate=0.3))
