_base_ = './retinanet_flatten-swin-t_fpn_1x_coco.py'

# Agents of pre-training, and the finer grids that the authors pool queries to in dense prediction.
model = dict(
    backbone=dict(
        layout=('linear', 'linear', 'linear', 'softmax'),
        attn_cfg=[
            dict(type='AgentAttention', agents=agents, pool_size=pool_size)
            for agents, pool_size in zip((3, 4, 7, 7), (9, 12, 14, 7))
        ],
    )
)
