"""RAVLT's published checkpoints (Fan et al., CVPR 2025).

Three kinds: the classifier, the backbone for dense prediction, and whole mmdet or mmseg models that
hold the latter under ``backbone.``. All keep the attention's kind to themselves: the file is the
same for both layouts.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from ..backbones.options import ARCH_DEFAULTS
from ..backbones.ravlt import ARCHS
from ..necks import ProjectionNeck
from ..registry import MODELS
from .converted import Converted, blames_the_file
from .fitting import fit_built
from .naming import RAVLT, block_counts, rename_keys, require_family, required

KIND = 'RAVLT or NaLaFormer'
_get = functools.partial(required, kind=KIND)
BACKBONES = ('RAVLT', 'MirrorLA')
RENAMES = (
    (r'^(proj|norm)\.', r'neck.\1.'),
    (r'^head\.', 'head.fc.'),
    (r'^patch_embed\.proj\.', 'backbone.stem.'),
    (r'^layers\.(\d+)\.downsample\.reduction\.', r'backbone.downsamples.\1.0.'),
    (r'^layers\.(\d+)\.downsample\.norm\.', r'backbone.downsamples.\1.1.'),
    (r'^layers\.(\d+)\.blocks\.', r'backbone.stages.\1.'),
    (r'^extra_norms\.(\d+)\.norm\.', r'backbone.norms.\1.'),
    (r'\.(norm[12])\.norm\.', r'.\1.'),
    (r'\.attn\.qkvo\.', '.attn.qkv.'),
    (r'\.gamma_([12])$', r'.gamma\1'),
)
ROPE = r'^layers\.\d+\.RoPE\.angle$'
REFLECTION = r'\.attn\.reflection\.'


@blames_the_file
def convert_ravlt(
    state_dict: dict[str, Tensor], to: str = 'RAVLT', layout: str = 'hybrid', seed: int = 0
) -> Converted:
    """Convert an official file's weights, to ``RAVLT`` or as a warm start of ``MirrorLA``.

    ``MirrorLA`` gets reflections at their initial values. A classifier becomes ``backbone.``,
    ``neck.`` and ``head.`` of an mmpretrain classifier; of a detector or segmentor, neck and heads
    are taken over as they are, since mmdet 3 and mmseg 1 kept their names.

    Args:
        state_dict (dict): From :func:`~mirrorla_mm.converters.read_state_dict`.
        to (str): ``'RAVLT'`` or ``'MirrorLA'``.
        layout (str): Of the converted model. Defaults to the published one, ``'hybrid'``.
        seed (int): Of the reflections' initial values, which ``MirrorLA`` adds.

    Returns:
        Converted: The weights, the backbone's config and what is new.

    Raises:
        ConversionError: If an entry is missing, has no place or another size, or the file is of
            another model.
        ValueError: If ``to`` or ``layout`` is not valid.
    """
    if to not in BACKBONES:
        raise ValueError(f"A RAVLT file converts to {' or '.join(BACKBONES)}, not to '{to}'.")
    require_family(state_dict, RAVLT)
    official, rest = _split_model(state_dict)
    dense = any(key.startswith('extra_norms.') for key in official)
    backbone = dict(type=f'mirrorla_mm.{to}', arch=pyramid_arch(official, ARCHS), layout=layout)
    if not dense:
        backbone.update(out_indices=(3,), out_norm=False)

    def build() -> nn.ModuleDict:
        if dense:
            return nn.ModuleDict(dict(backbone=MODELS.build(backbone)))
        return pyramid_classifier(backbone, official)

    renamed = rename_keys(official, RENAMES, computed=(ROPE,))
    fitted, new = fit_built(build, renamed, new=(REFLECTION,), seed=seed)
    return Converted({**fitted, **rest}, backbone, new)


def _split_model(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's entries by their official names, and those of a detector around it."""
    prefix = 'backbone.'
    backbone = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    if not backbone:
        return state_dict, {}
    return backbone, {k: v for k, v in state_dict.items() if not k.startswith(prefix)}


def pyramid_classifier(backbone: dict, official: dict[str, Tensor]) -> nn.ModuleDict:
    """A RAVLT-like classifier with the names of mmpretrain's ``ImageClassifier``."""
    features, channels = _get(official, 'proj.weight').flatten(1).shape
    classes = len(_get(official, 'head.weight'))
    return nn.ModuleDict(
        dict(
            backbone=MODELS.build(backbone),
            neck=ProjectionNeck(channels, features),
            head=nn.ModuleDict(dict(fc=nn.Linear(features, classes))),
        )
    )


def pyramid_arch(official: dict[str, Tensor], archs: dict[str, dict]) -> str | dict:
    """The architecture that the shapes tell: its name in ``archs``, or a dict for a custom one."""
    depths = block_counts(official, r'layers\.(\d+)\.blocks\.(\d+)\.', KIND)
    first = [f'layers.{stage}.blocks.0' for stage in range(len(depths))]
    dims = [_get(official, f'{name}.norm1.norm.weight').shape[0] for name in first]
    hidden = _get(official, f'{first[0]}.ffn.fc1.weight').shape[0]
    # The angles are repeated for rows and columns and for pairs: half a head's channels.
    heads = [
        dim // (2 * len(_get(official, f'layers.{stage}.RoPE.angle')))
        for stage, dim in enumerate(dims)
    ]
    arch = dict(
        embed_dims=tuple(dims),
        depths=depths,
        num_heads=tuple(heads),
        mlp_ratio=hidden / dims[0],
    )
    for name, settings in archs.items():
        if all({**ARCH_DEFAULTS, **settings}[key] == value for key, value in arch.items()):
            return name
    return arch
