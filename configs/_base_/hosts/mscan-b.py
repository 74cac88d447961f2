_base_ = './mscan-s.py'

checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segnext/mscan_b_20230227-3ab7d230.pth'
host = dict(depths=[3, 3, 12, 3], init_cfg=dict(checkpoint=checkpoint))
