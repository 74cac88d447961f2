_base_ = '../_base_/protocols/swin_8xb128_in1k.py'

# See relu-swin-t for the gate and the local enhancement.
model = dict(
    backbone=dict(attn_cfg=dict(type='ReLUAttention', gate=True, lepe_kernel=5, reflection={}))
)
