"""A tiny host and model, for the tests of this room."""

from __future__ import annotations

import torch

from mirrorla_mm import registry
from mirrorla_mm.diffusion import DiT

TOY = dict(
    arch=dict(embed_dims=48, depth=2, num_heads=3), input_size=16, in_channels=4, num_classes=10
)
ATTENTIONS = {
    **{name: dict(type=name) for name in sorted(registry.ATTENTIONS)},
    'control': dict(type='ReLUAttention', gate=True, lepe_kernel=5),
    'mirror': dict(type='ReLUAttention', gate=True, lepe_kernel=5, reflection={}),
    'augmented': dict(type='MirrorAttention', gate=True, lepe_kernel=5, qkv_bias=False),
}


def toy_host(**options) -> DiT:
    """A host whose last layers are not zero."""
    torch.manual_seed(0)
    model = DiT(**{**TOY, **options})
    for part in (*model.blocks, model.final_layer):
        torch.nn.init.normal_(part.adaLN_modulation[1].weight, std=0.1)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    return model.eval()
