"""FLatten's and PolaFormer's published checkpoints in Swin and PVT.

PolaFormer (Meng et al., ICLR 2025) is built on FLatten's code (Han et al., ICCV 2023): their files
differ in the attention alone. All are classifiers.
"""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor, nn

from ..registry import MODELS
from .converted import ConversionError, Converted, blames_the_file
from .fitting import fit_built
from .naming import SWIN_PVT, block_counts, rename_keys, require_family, required

KIND = 'FLatten or PolaFormer'
_get = functools.partial(required, kind=KIND)
ATTENTION_RENAMES = (
    (r'\.qkvg\.', '.qkv.'),
    (r'\.positional_encoding$', '.position'),
    (r'^head\.', 'head.fc.'),
)
SWIN_RENAMES = (
    *ATTENTION_RENAMES,
    (r'^patch_embed\.proj\.', 'backbone.patch_embed.projection.'),
    (r'^patch_embed\.', 'backbone.patch_embed.'),
    (r'^norm\.', 'backbone.norm3.'),
    (r'^layers\.', 'backbone.stages.'),
    (r'\.attn\.', '.attn.w_msa.'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
)
PVT_RENAMES = (
    *ATTENTION_RENAMES,
    (r'^(\d)\.pos_embed$', r'backbone.layers.\1.1.0.pos_embed'),
    (r'^(\d)\.patch_embed\.proj\.', r'backbone.layers.\1.0.projection.'),
    (r'^(\d)\.patch_embed\.', r'backbone.layers.\1.0.'),
    (r'^(\d)\.block\.', r'backbone.layers.\1.1.'),
    (r'\.attn\.norm\.', '.attn.sr_norm.'),
    (r'\.attn\.', '.attn.attn.'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.3.'),
)
# Masks of shifted windows; and the last norm of PVT, which the authors' forward pass leaves out.
SWIN_COMPUTED = (r'\.attn_mask$',)
PVT_COMPUTED = (r'^norm\.',)


@blames_the_file
def convert_swin_pvt(
    state_dict: dict[str, Tensor], focusing_factor: float = 3, alpha: float = 4
) -> Converted:
    """Convert a FLatten-Swin, FLatten-PVT, Pola-Swin or Pola-PVT classifier.

    It becomes ``backbone.`` and ``head.`` of an mmpretrain classifier with global average pooling.
    Method, host, sizes and the kind of each stage are read off the entries. One number is not in
    the file: the power that FLatten focuses with, or PolaFormer's range of powers. A wrong one
    converts too, to a model whose outputs are some percent off.

    Args:
        state_dict (dict): From :func:`~mirrorla_mm.converters.read_state_dict`.
        focusing_factor (float): FLatten's. Defaults to 3, that of all its published files.
        alpha (float): PolaFormer's. Defaults to 4, that of all its published files.

    Returns:
        Converted: The weights, the backbone's config and which of the two numbers it assumes.

    Raises:
        ConversionError: If an entry is missing, has no place or another size, or the file is of
            another model.
    """
    require_family(state_dict, SWIN_PVT)
    polarity = any(key.endswith('.attn.power') for key in state_dict)
    assumed = dict(alpha=alpha) if polarity else dict(focusing_factor=focusing_factor)
    method = dict(type='PolaAttention' if polarity else 'FLattenAttention', **assumed)
    if 'pos_embed1' in state_dict:
        backbone, renamed = _pvt(state_dict, method)
    elif any(key.startswith('layers.0.blocks.') for key in state_dict):
        backbone, renamed = _swin(state_dict, method)
    else:
        raise ConversionError(
            'This is neither a Swin nor a PVT of FLatten or PolaFormer: there is no '
            "'layers.0.blocks.' and no 'pos_embed1' in the file."
        )
    for key, value in renamed.items():
        if key.endswith('.position'):
            side = round(value.shape[1] ** 0.5)
            renamed[key] = value[0].t().unflatten(1, (side, side))
    classes, channels = _get(state_dict, 'head.weight').flatten(1).shape

    def build() -> nn.ModuleDict:
        head = nn.ModuleDict(dict(fc=nn.Linear(channels, classes)))
        return nn.ModuleDict(dict(backbone=MODELS.build(backbone), head=head))

    fitted, new = fit_built(build, renamed)
    return Converted(fitted, backbone, new, assumed=assumed)


def _swin(official: dict[str, Tensor], method: dict) -> tuple[dict, dict[str, Tensor]]:
    depths = block_counts(official, r'layers\.(\d+)\.blocks\.(\d+)\.', KIND)
    first = [f'layers.{stage}.blocks.0' for stage in range(len(depths))]
    linear = [f'{name}.attn.positional_encoding' in official for name in first]
    channels = len(_get(official, 'patch_embed.proj.bias'))
    tables = {
        stage: _get(official, f'{name}.attn.relative_position_bias_table')
        for stage, name in enumerate(first)
        if not linear[stage]
    }
    backbone = dict(
        type='mirrorla_mm.LinearSwin',
        embed_dims=channels,
        depths=depths,
        layout=tuple('linear' if kind else 'softmax' for kind in linear),
        attn_cfg=method,
        out_indices=(len(depths) - 1,),
    )
    if tables:
        # In a table of relative positions there is a row for each of (2 window - 1)^2 offsets.
        sides = [(round(len(table) ** 0.5) + 1) // 2 for table in tables.values()]
        backbone['window_size'] = max(sides)
    if any(linear):
        stage = linear.index(True)
        side = round(official[f'{first[stage]}.attn.positional_encoding'].shape[1] ** 0.5)
        backbone['pretrain_img_size'] = side * 4 * 2**stage
    backbone['num_heads'] = tuple(
        channels * 2**stage // _head_dim(official, first[stage])
        if linear[stage]
        else tables[stage].shape[1]
        for stage in range(len(depths))
    )
    renamed = rename_keys(official, SWIN_RENAMES, SWIN_COMPUTED)
    for key, value in renamed.items():
        if '.downsample.' in key:
            renamed[key] = _merged_channels(value)
    return backbone, renamed


def _pvt(official: dict[str, Tensor], method: dict) -> tuple[dict, dict[str, Tensor]]:
    depths = block_counts(official, r'block(\d+)\.(\d+)\.', KIND, first=1)
    stages = range(1, len(depths) + 1)
    softmax = [s for s in stages if f'block{s}.0.attn.positional_encoding' not in official]
    if softmax:
        raise ConversionError(
            f'Stages {softmax} of this PVT have softmax attention: only a PVT that is linear in '
            'all stages, as both papers publish it, can be converted.'
        )
    channels = [len(_get(official, f'patch_embed{stage}.proj.bias')) for stage in stages]
    head_dim = _head_dim(official, 'block1.0')
    backbone = dict(
        type='mirrorla_mm.LinearPVT',
        pretrain_img_size=4 * round(official['pos_embed1'].shape[1] ** 0.5),
        embed_dims=head_dim,
        num_layers=depths,
        num_heads=tuple(dims // head_dim for dims in channels),
        mlp_ratios=tuple(
            len(_get(official, f'block{stage}.0.mlp.fc1.bias')) // dims
            for stage, dims in zip(stages, channels)
        ),
        attn_cfg=method,
        linear_sr_ratios=tuple(
            official[name].shape[-1]
            if (name := f'block{stage}.0.attn.sr.weight') in official
            else 1
            for stage in stages
        ),
    )
    return backbone, rename_keys(_packed(official), PVT_RENAMES, PVT_COMPUTED)


def _packed(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """PVT's entries with one projection for q, k, v and gate, and stages counted as ours."""
    entries = {}
    for key, value in official.items():
        name = re.sub(
            r'^(pos_embed|patch_embed|block)(\d+)', lambda m: f'{int(m[2]) - 1}.{m[1]}', key
        )
        # mmdet's list of blocks begins with the position embedding.
        name = re.sub(r'\.block\.(\d+)\.', lambda m: f'.block.{int(m[1]) + 1}.', name)
        projection = re.search(r'\.attn\.(q|qg|kv)\.(weight|bias)$', name)
        if projection is None:
            entries[name] = value
        elif projection[1] != 'kv':
            channels = len(_get(official, re.sub(r'\.qg?\.\w+$', '.proj.bias', key)))
            queries, *gate = value.split(channels)
            keys_values = _get(official, re.sub(r'\.qg?\.', '.kv.', key))
            if queries.dtype != keys_values.dtype:
                raise ConversionError(f"'{key}' and its keys and values are of different types.")
            entries[re.sub(r'\.qg?\.', '.qkv.', name)] = torch.cat((queries, keys_values, *gate))
    return entries


def _head_dim(official: dict[str, Tensor], block: str) -> int:
    """The convolution that the heads share has a kernel for each channel of a head."""
    return len(_get(official, f'{block}.attn.dwc.weight'))


def _merged_channels(value: Tensor) -> Tensor:
    """From the original's order of the channels that patch merging stacks to mmdet's.

    The original stacks the four tokens by column, row, channel; mmdet unfolds channel, row, column.
    """
    return value.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)
