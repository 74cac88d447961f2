"""Options that the hosts share: what they may be, and what is said of those that they may not."""

from __future__ import annotations

from collections.abc import Sequence

ARCH_KEYS = ('embed_dims', 'depths', 'num_heads')
ARCH_DEFAULTS = dict(drop_path_rate=0.0, layer_scale=1.0, mlp_ratio=3.5)

HYBRID = ('linear', 'linear', 'softmax', 'softmax')
LAYOUTS = {'hybrid': HYBRID, 'linear': ('linear',) * 4, 'paper': HYBRID}  # 'paper': older configs


def named_arch(arch: str | dict, archs: dict[str, dict]) -> dict:
    """Settings of an architecture by its name in ``archs``, in any case; a dict stays as it is.

    Raises:
        ValueError: If the name is unknown.
    """
    if not isinstance(arch, str):
        return arch
    if arch.lower() not in archs:
        raise ValueError(f"Unknown arch '{arch}'; choose from {', '.join(archs)} or give a dict.")
    return archs[arch.lower()]


def with_arch(arch: str | dict | None, archs: dict[str, dict], settings: dict) -> dict:
    """The settings of an architecture, overridden by those that are given.

    Raises:
        ValueError: If its name is unknown.
    """
    return settings if arch is None else {**named_arch(arch, archs), **settings}


def arch_settings(arch: str | dict, archs: dict[str, dict]) -> dict:
    """Settings of a named or custom architecture of :class:`.RAVLT`, one ``layer_scale`` a stage.

    Raises:
        ValueError: If the name is unknown, the dict lacks or misspells a key, or a key has not one
            value a stage.
    """
    arch = named_arch(arch, archs)
    missing = [key for key in ARCH_KEYS if key not in arch]
    unknown = [key for key in arch if key not in (*ARCH_KEYS, *ARCH_DEFAULTS)]
    if missing or unknown:
        raise ValueError(
            f'A custom arch needs {", ".join(ARCH_KEYS)} and may set {", ".join(ARCH_DEFAULTS)}; '
            f'missing: {missing}, unknown: {unknown}.'
        )
    settings = {**ARCH_DEFAULTS, **arch}
    stages, scale = len(settings['depths']), settings['layer_scale']
    settings['layer_scale'] = tuple(scale) if isinstance(scale, Sequence) else (scale,) * stages
    if any(len(settings[key]) != stages for key in (*ARCH_KEYS, 'layer_scale')):
        raise ValueError(
            'embed_dims, depths, num_heads and layer_scale of an arch need one value a stage, got '
            f'{dict(arch)}.'
        )
    return settings


def stage_layout(layout: str | Sequence[str], stages: int) -> tuple[str, ...]:
    """The kind of attention of each stage.

    Raises:
        ValueError: If the name is unknown or a stage is neither linear nor softmax.
    """
    kinds = LAYOUTS.get(layout) if isinstance(layout, str) else tuple(layout)
    if kinds is None or len(kinds) != stages or set(kinds) - {'linear', 'softmax'}:
        raise ValueError(
            f"layout needs to be one of {', '.join(map(repr, LAYOUTS))} or a sequence of 'linear' "
            f"and 'softmax', one for each of the {stages} stages, got {layout!r}."
        )
    return kinds


def stage_attentions(
    attn_cfg: dict | Sequence[dict | None], layout: str | Sequence[str], stages: int
) -> tuple[dict | None, ...]:
    """The attention of each stage; None where softmax attention stays.

    Args:
        attn_cfg (dict | Sequence[dict | None]): One for all linear stages, or one per stage.
        layout (str | Sequence[str]): See :class:`.RAVLT`.
        stages (int): Number of stages.

    Raises:
        ValueError: If ``attn_cfg`` has not one entry per stage, or ``layout`` is not valid.
    """
    cfgs = [attn_cfg] * stages if isinstance(attn_cfg, dict) else list(attn_cfg)
    if len(cfgs) != stages:
        raise ValueError(
            f'attn_cfg needs one dict, or one for each of the {stages} stages, got {len(cfgs)}.'
        )
    kinds = stage_layout(layout, stages)
    return tuple(cfg if kind == 'linear' else None for cfg, kind in zip(cfgs, kinds))


def checked_out_indices(out_indices: Sequence[int], stages: int) -> tuple[int, ...]:
    """``out_indices`` as a tuple, or a ValueError that says what is wrong with it."""
    indices = tuple(out_indices)
    if (
        not indices
        or any(i not in range(stages) for i in indices)
        or list(indices) != sorted(set(indices))
    ):
        raise ValueError(
            f'out_indices needs ascending stages from 0 to {stages - 1}, got {out_indices!r}.'
        )
    return indices


def checked_frozen_stages(frozen_stages: int, stages: int) -> int:
    """``frozen_stages``, or a ValueError that says what is wrong with it."""
    if frozen_stages not in range(-1, stages + 1):
        raise ValueError(
            f'frozen_stages needs to be -1 (none), 0 (stem) or 1 to {stages} (stages), '
            f'got {frozen_stages!r}.'
        )
    return frozen_stages
