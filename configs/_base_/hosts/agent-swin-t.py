_base_ = './flatten-swin-t.py'

# Agents of pre-training, and what the authors have in detection: the finer grids that queries are
# pooled to, and half of Swin-T's drop path.
host = dict(
    drop_path_rate=0.1,
    layout=('linear', 'linear', 'linear', 'softmax'),
    attn_cfg=[
        dict(type='AgentAttention', agents=agents, pool_size=pool_size)
        for agents, pool_size in zip((3, 4, 7, 7), (9, 12, 14, 7))
    ],
)
