"""DCTLSA's published checkpoints (Zeng et al., 2023), there and back."""

from __future__ import annotations

import math
import re

from torch import Tensor

from ..registry import MODELS
from .converted import Converted, blames_the_file
from .fitting import fit_built
from .naming import DCTLSA, block_counts, require_family, required

PREFIX = 'backbone.'
# What the authors' attention does not have stays as it was built.
OWN = r'\.attn\.(?!qkv\.|proj\.)'
# Rows of the authors' q, k and v; a gate's follow.
PACKED = r'\.attn\.qkv\.'
# From our names to the authors'.
RENAMES = (
    (r'^stem\.', 'fea_conv.'),
    (r'^tail\.', 'LR_conv.'),
    (r'^groups\.(\d+)\.(\d+)\.', r'B\1.body.\2.transformer_body.0.'),
    (r'\.0\.norm\.', '.0.patch_embed.norm.'),
    (r'\.local\.0\.', '.attn.local.pointwise_prenorm_0.'),
    (r'\.local\.1\.', '.attn.local.pointwise_conv_0.'),
    (r'\.local\.2\.', '.attn.local.depthwise_conv.'),
    (r'\.local\.3\.', '.attn.local.pointwise_prenorm_1.'),
    (r'\.local\.4\.', '.attn.local.pointwise_conv_1.'),
    (r'\.ffn\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.2\.', '.mlp.fc2.'),
)


@blames_the_file
def convert_dctlsa(
    state_dict: dict[str, Tensor], backbone: dict | None = None, seed: int = 0
) -> Converted:
    """Convert the authors' weights, or make them the warm start of another attention.

    Any attention takes over the projections to q, k, v and of the output; whatever else it has is
    new.

    Args:
        state_dict (dict): From :func:`~mirrorla_mm.converters.read_state_dict`.
        backbone (dict, optional): ``model.backbone`` of the config that shall start from it.
            Defaults to what the file tells, with the authors' own attention and 5 heads.
        seed (int): Of the values of what is new. Defaults to 0.

    Returns:
        Converted: The weights under ``backbone.``, the backbone's config and what is new.

    Raises:
        ConversionError: If an entry is missing, has no place or another size, or the file is of
            another model.
    """
    require_family(state_dict, DCTLSA)
    sizes = _sizes(state_dict)
    backbone = backbone or dict(type='mirrorla_mm.DCTLSA', **sizes)
    ours = _our_names(sizes['num_groups'])
    renamed = {ours.get(key, key): value for key, value in state_dict.items()}
    fitted, new = fit_built(
        lambda: MODELS.build(dict(backbone, init_cfg=None)), renamed, (OWN,), (PACKED,), seed
    )
    return Converted(
        {PREFIX + key: value for key, value in fitted.items()},
        backbone,
        tuple(PREFIX + key for key in new),
        assumed=dict(num_heads=backbone.get('num_heads', 5)),
    )


@blames_the_file
def official_dctlsa(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' file of a model trained here, which their code and spandrel read.

    Args:
        state_dict (dict): Of a :class:`~mirrorla_mm.restoration.DCTLSA` with the authors' own
            attention, under ``backbone.`` or not.

    Returns:
        dict: Under the authors' names, complete.

    Raises:
        ConversionError: If it is of another model, or of another attention.
    """
    ours = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
    groups = len(block_counts(ours, r'groups\.(\d+)\.(\d+)\.', 'DCTLSA'))
    official = {_official_name(key, groups): value for key, value in ours.items()}
    # The number of heads changes no shape.
    convert_dctlsa(official, dict(type='mirrorla_mm.DCTLSA', **_sizes(official), num_heads=1))
    return official


def _sizes(official: dict[str, Tensor]) -> dict[str, int]:
    """Options of the model, read from the shapes."""
    channels = len(required(official, 'fea_conv.weight', 'DCTLSA'))
    shuffled = len(required(official, 'upsampler.0.weight', 'DCTLSA'))
    groups = block_counts(official, r'B(\d+)\.body\.(\d+)\.', 'DCTLSA', first=1)
    return dict(upscale=math.isqrt(shuffled // 3), embed_dims=channels, num_groups=len(groups))


def _our_names(groups: int) -> dict[str, str]:
    """Our name of each of the authors', from the one table."""
    smallest = dict(type='mirrorla_mm.DCTLSA', embed_dims=1, num_heads=1, num_groups=groups)
    names = MODELS.build(smallest).state_dict()
    return {_official_name(name, groups): name for name in names}


def _official_name(name: str, groups: int) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    # They count groups from 1, and the last fusion has no number.
    name = re.sub(r'^B(\d+)\.', lambda found: f'B{int(found[1]) + 1}.', name)
    return re.sub(
        r'^fusions\.(\d+)\.',
        lambda found: f'c{int(found[1]) + 1}.'.replace(f'c{groups}.', 'c.'),
        name,
    )
