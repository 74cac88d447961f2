"""Files as authors publish them, and models built from what became of them."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS

NALAFORMER_ARCH = dict(embed_dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 2))


def nalaformer_file(model, arch: dict = NALAFORMER_ARCH) -> dict[str, torch.Tensor]:
    """Parameters of ours by the names of the authors' released code, and a classifier."""
    renames = [
        ('stem.', 'patch_embed.proj.'),
        ('.pos2.', '.cpe2.'),
        ('.pos.', '.cpe1.'),
        ('.norm1.', '.norm1.norm.'),
        ('.norm2.', '.norm2.norm.'),
        ('.qkv.', '.qkvg.'),
        ('attn.proj.', 'attn.out_proj.'),
        ('attn.out_norm.', 'attn.ln.'),
        ('gamma', 'gamma_'),
    ]
    entries = {}
    for key, value in model.state_dict().items():
        for ours, theirs in renames:
            key = key.replace(ours, theirs)
        parts = key.split('.')
        if parts[0] == 'stages':
            key = '.'.join(['layers', parts[1], 'blocks', *parts[2:]])
        if parts[0] == 'downsamples':
            kind = 'norm' if parts[2] == '1' else 'reduction'
            key = '.'.join(['layers', parts[1], 'downsample', kind, *parts[3:]])
        entries[key] = value[None, :, None, None] if 'gamma' in key else value
    for i, (dims, heads) in enumerate(zip(arch['embed_dims'], arch['num_heads'])):
        entries[f'layers.{i}.RoPE.angle'] = torch.zeros(dims // heads // 2)
    entries |= {'proj.weight': torch.rand(24, arch['embed_dims'][-1]), 'proj.bias': torch.rand(24)}
    entries |= {
        f'norm.{name}': torch.rand(24) for name in ('weight', 'bias', 'running_mean', 'running_var')
    }
    entries |= {'norm.num_batches_tracked': torch.tensor(1)}
    return entries | {'head.weight': torch.rand(5, 24, 1, 1), 'head.bias': torch.rand(5)}


def classify(converted, x: torch.Tensor) -> torch.Tensor:
    """The official classifier's end: mean over the map, then the linear head."""
    model = MODELS.build(converted.backbone).eval()
    parts = {'backbone': {}, 'head': {}}
    for key, value in converted.state_dict.items():
        part, name = key.split('.', 1)
        parts[part][name] = value
    model.load_state_dict(parts['backbone'])
    pooled = model(x)[-1].mean((2, 3))
    return pooled @ parts['head']['fc.weight'].t() + parts['head']['fc.bias']
