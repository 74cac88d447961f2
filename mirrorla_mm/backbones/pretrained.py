"""Start a host from a checkpoint, where a checkpoint that does not fit is an error."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..engine.checkpoint import LOADING_ERRORS, CheckpointError, misfit, other_numbers

ENOUGH = 0.5  # Upstream's weights fill some 70 % of a host whose attention is another.
NAMED = 3
StateDict = dict[str, Tensor]


def has_checkpoint(init_cfg: dict | list | None) -> bool:
    """Whether an ``init_cfg`` is ``dict(type='Pretrained', ...)``, which :func:`load_pretrained`
    reads; mmengine reads all others.

    Raises:
        ValueError: If it is a list with such a dict, where mmengine would load what fits.
    """
    if isinstance(init_cfg, (list, tuple)) and any(map(has_checkpoint, init_cfg)):
        raise ValueError(
            "init_cfg needs to be the dict(type='Pretrained', ...) itself, not a list with it: a "
            'checkpoint fills the whole host.'
        )
    return isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'


def load_pretrained(
    model: nn.Module, adapt: Callable[[StateDict], StateDict] | None = None
) -> None:
    """Load the checkpoint that a host's ``init_cfg`` names.

    The host's entries may stand alone or, as in a whole detector, under ``backbone.``, whether or
    not ``prefix`` says so. What the checkpoint lacks keeps its initial values, and is logged.

    Args:
        model (nn.Module): With ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)``;
            ``min_loaded=0`` in it is for a file that is known to have little in common.
        adapt (Callable, optional): Changes the entries to the host's names and shapes.

    Raises:
        CheckpointError: If an entry has another shape or kind of numbers than the host's, if no
            entry begins with ``prefix``, or if the checkpoint holds less than ``min_loaded``, by
            default half, of the host's parameters.
    """
    file, prefix = model.init_cfg['checkpoint'], model.init_cfg.get('prefix')
    checkpoint = CheckpointLoader.load_checkpoint(file, map_location='cpu', logger='current')
    weights = _without_prefix(_weights(checkpoint, file), prefix, file)
    weights = weights if adapt is None else adapt(weights)
    origin = _origin(checkpoint)
    for key, own in model.state_dict().items():
        fault = other_numbers(weights[key], own) if isinstance(weights.get(key), Tensor) else None
        if fault:
            raise CheckpointError(
                f'{file} does not fit {type(model).__name__}: {key} {fault}.{origin}'
            )
    try:
        absent, beyond = model.load_state_dict(weights, strict=False)
    except LOADING_ERRORS as error:
        raise CheckpointError(
            f'{file} does not fit {type(model).__name__}: {misfit(error)}.{origin}'
        ) from error
    parameters = {key for key, _ in model.named_parameters()}
    missing = [key for key in absent if key in parameters]
    if len(missing) > (1 - model.init_cfg.get('min_loaded', ENOUGH)) * len(parameters):
        raise CheckpointError(
            f'{file} does not fit {type(model).__name__}: {len(missing)} of its {len(parameters)} '
            f'parameters are not there, such as {missing[0]}; {len(beyond)} entries of the file '
            f'have no place, such as {_named(beyond)}.{origin} To start from it all the same set '
            'init_cfg.min_loaded=0.'
        )
    statistics = [key for key in absent if key.endswith(('.running_mean', '.running_var'))]
    lost = [key for key in statistics if f'{key.rpartition(".")[0]}.weight' not in absent]
    if lost:
        # Trained weights with a new norm's statistics give other outputs without a word.
        raise CheckpointError(
            f'{file} does not fit {type(model).__name__}: it lacks {lost[0]}, the statistics of a '
            f'batch norm whose weight it has.{origin}'
        )
    if statistics and model.init_cfg.get('min_loaded', ENOUGH):
        raise CheckpointError(
            f'{file} does not fit {type(model).__name__}: it lacks the batch norm of '
            f'{statistics[0]}, as a model does that was folded for inference before it was '
            f'saved.{origin} To start from it all the same set init_cfg.min_loaded=0.'
        )
    if missing or beyond:
        print_log(
            f'{file}: {len(missing)} parameters of {type(model).__name__} are not there and keep '
            f'their initial values ({_named(missing)}); {len(beyond)} entries of the file have no '
            f'place ({_named(beyond)}).',
            'current',
            logging.WARNING,
        )


def pretrained_init_cfg(pretrained: str | None) -> dict | None:
    """The ``init_cfg`` for mmseg's ``model.pretrained``.

    An upstream config of which only the backbone was changed still names the old backbone's
    weights there.
    """
    if pretrained is None:
        return None
    if pretrained.startswith(('open-mmlab://', 'torchvision://', 'mmcls://')):
        print_log(
            f"model.pretrained='{pretrained}' holds weights of another architecture; starting "
            'without them. Set model.pretrained=None to silence this.',
            logger='current',
            level=logging.WARNING,
        )
        return None
    return dict(type='Pretrained', checkpoint=pretrained)


def _weights(checkpoint: Any, file: str) -> StateDict:
    weights = checkpoint
    for key in ('state_dict', 'model'):
        if isinstance(weights, dict) and key in weights:
            weights = weights[key]
            break
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise CheckpointError(f'{file} holds no weights.')
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _without_prefix(weights: StateDict, prefix: str | None, file: str) -> StateDict:
    """The host's own entries, by its own names."""
    prefix = f'{(prefix or "backbone").rstrip(".")}.'
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    # A file of the host alone has no prefix to take off.
    if not own and prefix != 'backbone.':
        raise CheckpointError(
            f'{file}: no entry begins with the prefix {prefix!r} that init_cfg names; its entries '
            f'are such as {_named(list(weights))}.'
        )
    return own or weights


def _origin(checkpoint: dict) -> str:
    """The note of a converter in the file."""
    meta = checkpoint.get('meta')
    backbone = meta.get('backbone') if isinstance(meta, dict) else None
    return f' The file was converted for backbone={backbone}.' if backbone else ''


def _named(keys: list[str]) -> str:
    return ', '.join(keys[:NAMED]) + (', ...' if len(keys) > NAMED else '') or 'none'
