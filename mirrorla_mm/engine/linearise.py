"""From a backbone with softmax attention to one that is linear: which layers, and what config."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from ..attention import SoftmaxAttention
from ..backbones.options import stage_attentions
from ..registry import ATTENTIONS
from .errors import UserError

__all__ = ['layers_of', 'linear_backbone', 'linear_config', 'swin_warning']

SOFTMAX = ('softmax',) * 4
MIRROR = dict(type='MirrorAttention')
# PVT's, in its softmax and in its linear stages.
REDUCTIONS = dict(sr_ratios=(8, 4, 2, 1), linear_sr_ratios=(1, 1, 1, 1))


@dataclass(frozen=True)
class Host:
    """How the layers of a backbone are named and replaced.

    Attributes:
        linear (str): The backbone of this project that takes its place.
        layers (str): Pattern of its attention layers' names; ``{}`` is the stage, from 0.
        layout (str | tuple[str, ...], optional): Its layout where the config names none; None for a
            backbone of one stage, which has no layout.
        attention (Callable): Its attention where the config names none, from the backbone's config.
    """

    linear: str
    layers: str
    layout: str | tuple[str, ...] | None
    attention: Callable[[dict], dict] = lambda backbone: MIRROR


_RAVLT_LAYERS = r'stages\.{}\.\d+\.attn'
_SWIN_LAYERS = r'stages\.{}\.blocks\.\d+\.attn'
_PVT_LAYERS = r'layers\.{}\.1\.\d+\.attn'
HOSTS = {
    'RAVLT': Host('RAVLT', _RAVLT_LAYERS, 'hybrid', lambda _: dict(type='RALA')),
    'MirrorLA': Host(
        'RAVLT',
        _RAVLT_LAYERS,
        'hybrid',
        lambda backbone: dict(MIRROR, reflection=dict(backbone.get('reflection') or {})),
    ),
    'NaLaFormer': Host('NaLaFormer', _RAVLT_LAYERS, 'hybrid', lambda _: dict(type='NaLaAttention')),
    'LinearSwin': Host('LinearSwin', _SWIN_LAYERS, 'hybrid'),
    'SwinTransformer': Host('LinearSwin', _SWIN_LAYERS, SOFTMAX),
    'LinearPVT': Host('LinearPVT', _PVT_LAYERS, 'linear'),
    'PyramidVisionTransformer': Host('LinearPVT', _PVT_LAYERS, SOFTMAX),
    'DiT': Host('DiT', r'blocks\.\d+\.attn', None),
}
STAGES = 4


def host_of(backbone: dict) -> Host:
    """Look up the facts about a backbone.

    Raises:
        UserError: If it is none of :data:`HOSTS`.
    """
    name = _name(backbone)
    if name not in HOSTS:
        raise UserError(
            f"The backbone '{name}' cannot be linearised: choose a config with one of "
            f'{", ".join(HOSTS)}.'
        )
    return HOSTS[name]


def linear_backbone(backbone: dict, attn: dict, stages: Iterable[int]) -> dict:
    """The config of a backbone with another attention in some stages.

    Everything else stays; weights that are named for the old backbone alone are left out. RAVLT
    with the mirror map in every stage becomes ``MirrorLA``.

    Args:
        backbone (dict): ``model.backbone`` of a config.
        attn (dict): ``type`` and options of the new attention.
        stages (Iterable[int]): Stages that get it, from 1.

    Returns:
        dict: ``model.backbone`` of the new config.

    Raises:
        UserError: If the backbone is unknown, the attention is none, there is no such stage, or
            none of the stages has softmax attention.
    """
    host = host_of(backbone)
    stages = sorted(set(stages))
    cfgs = _attentions(backbone, host)
    if not stages or not set(stages) <= set(range(1, len(cfgs) + 1)):
        raise UserError(
            f'This backbone has the stages 1 to {len(cfgs)}, not {_listed(stages)}: name some of '
            f'these, such as --stages {len(cfgs)}.'
        )
    _check_attention(attn)
    _check_softmax(cfgs, stages)
    new = copy.deepcopy(dict(backbone))
    for key in ('init_cfg', 'pretrained', 'attn_cfg'):
        new.pop(key, None)
    new['type'] = f'mirrorla_mm.{host.linear}'
    if host.layout is None:
        return dict(new, attn_cfg=copy.deepcopy(dict(attn)))
    if host.linear == 'LinearPVT':
        # Keys that were reduced stay reduced, with the same weights.
        softmax, linear = (new.get(name, default) for name, default in REDUCTIONS.items())
        new['linear_sr_ratios'] = tuple(
            ours if cfg else theirs for cfg, ours, theirs in zip(cfgs, linear, softmax)
        )
    for stage in stages:
        cfgs[stage - 1] = copy.deepcopy(dict(attn))
    new.pop('reflection', None)
    reflection = _common_reflection(cfgs)
    if host.linear == 'RAVLT' and reflection is not None:
        return dict(new, type='mirrorla_mm.MirrorLA', layout='linear', reflection=reflection)
    new['layout'] = tuple('linear' if cfg else 'softmax' for cfg in cfgs)
    return dict(new, attn_cfg=cfgs)


def linear_config(
    cfg: Config, attn: dict, stages: Iterable[int], options: dict | None = None
) -> Config:
    """A config with the backbone of :func:`linear_backbone`, and no weights to start from.

    Args:
        cfg (Config): Of the old model.
        attn (dict): ``type`` and options of the new attention.
        stages (Iterable[int]): Stages that get it, from 1.
        options (dict, optional): Of the new backbone, such as LinearSwin's ``linear_window``.

    Raises:
        UserError: See :func:`linear_backbone`.
    """
    cfg = copy.deepcopy(cfg)
    new = linear_backbone(cfg.model.backbone, attn, stages)
    cfg.model.backbone = ConfigDict(new, **(options or {}))
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    cfg.load_from, cfg.resume = None, False
    return cfg


def layers_of(backbone: nn.Module, stages: Iterable[int]) -> list[str]:
    """Names of the attention layers of some stages, from 1, in the order of the pass."""
    pattern = HOSTS[type(backbone).__name__].layers
    wanted = re.compile('|'.join(pattern.format(stage - 1) for stage in sorted(set(stages))))
    return [name for name, _ in backbone.named_modules() if wanted.fullmatch(name)]


def swin_warning(backbone: dict, stages: Sequence[int]) -> str | None:
    """Advice before Swin's windows are replaced; None for other backbones."""
    if host_of(backbone).linear != 'LinearSwin':
        return None
    return (
        "Swin's window attention is linear in the number of tokens already. The new layers of the "
        f'stages {_listed(stages)} see the whole map instead of a window, so they are poor at '
        'imitating windows; --backbone-options linear_window=7 keeps windows.'
    )


def _attentions(backbone: dict, host: Host) -> list[dict | None]:
    """The attention of each stage; None where it is the softmax of the host."""
    named = copy.deepcopy(backbone.get('attn_cfg')) or host.attention(backbone)
    if host.layout is None:
        return [backbone.get('attn_cfg')]
    layout = backbone.get('layout') or host.layout
    return list(stage_attentions(named, layout, _stages(backbone)))


def _check_softmax(cfgs: Sequence[dict | None], stages: Sequence[int]) -> None:
    kinds = enumerate(cfgs, 1)
    softmax = [n for n, cfg in kinds if cfg is None or _name(cfg) == SoftmaxAttention.__name__]
    if not softmax:
        raise UserError('This backbone has no softmax attention: there is nothing to linearise.')
    if not set(stages) & set(softmax):
        raise UserError(
            f'The attention of the stages {_listed(stages)} is linear already: softmax is that of '
            f'{_listed(softmax)}, name them with --stages.'
        )


def _name(cfg: dict) -> str:
    """The class of a config, without its scope."""
    kind = cfg.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def _common_reflection(cfgs: Sequence[dict | None]) -> dict | None:
    """Options of the reflections where every stage has the same mirror map, else None."""
    first = dict((cfgs[0] or {}).get('reflection') or {})
    same = [
        cfg is not None
        and _name(cfg) == MIRROR['type']
        and not cfg.keys() - {'type', 'reflection'}
        and dict(cfg.get('reflection') or {}) == first
        for cfg in cfgs
    ]
    return first if all(same) else None


def _stages(backbone: dict) -> int:
    arch = backbone.get('arch')
    sizes = {**arch, **backbone} if isinstance(arch, dict) else backbone
    return len(sizes.get('depths') or sizes.get('num_layers') or range(STAGES))


def _check_attention(attn: dict[str, Any]) -> None:
    known = sorted(ATTENTIONS.keys() - {SoftmaxAttention.__name__})
    if _name(attn) not in known:
        raise UserError(
            f"There is no linear attention '{attn.get('type')}'; choose from {', '.join(known)}."
        )


def _listed(stages: Iterable[int]) -> str:
    return ', '.join(map(str, stages)) or 'none'
