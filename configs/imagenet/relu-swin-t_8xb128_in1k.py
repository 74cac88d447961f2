_base_ = '../_base_/protocols/swin_8xb128_in1k.py'

# The paper does not say what its two LA rows are made of. With the gate and the local enhancement
# of RAVLT's attention they have the 28 M and 4.6 G of Tab. 7; without, 4.5 G.
model = dict(backbone=dict(attn_cfg=dict(type='ReLUAttention', gate=True, lepe_kernel=5)))
