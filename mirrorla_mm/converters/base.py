"""What every converter shares: strict renaming, strict fitting, one form of output.

A converter gives its key names as regular expressions, builds the model that the file is for and
fits it. Nothing is guessed: an entry without a place and a parameter without an entry are errors
that name them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine import load_checkpoint_file

# Where training scripts keep the weights; those averaged over training come last, as the
# published figures are of the plain ones.
CONTAINERS = ('state_dict', 'model', 'module', 'model_ema')
NAMED = 8


class ConversionError(ValueError):
    """The file is not what the converter reads; the message names what is wrong."""


@dataclass(frozen=True)
class Converted:
    """What a converter makes of a file.

    Attributes:
        state_dict (dict): Complete, for the model as a whole: the backbone's under ``backbone.``.
        backbone (dict): The backbone's config.
        new (tuple[str, ...]): Parameters that the file does not have, at their initial values.
    """

    state_dict: dict[str, Tensor]
    backbone: dict
    new: tuple[str, ...] = ()


def read_state_dict(file: str | os.PathLike) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, wherever its training script put them.

    Raises:
        CheckpointError: If the file is damaged or asks to run code.
        ConversionError: If there are no weights in it.
    """
    content = load_checkpoint_file(file, map_location='cpu')
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ConversionError(
            f'{file} holds no weights: expected a state dict, or one under {", ".join(CONTAINERS)}.'
        )
    return {re.sub(r'^module\.', '', key): value for key, value in content.items()}


def rename_keys(
    state_dict: dict[str, Tensor],
    renames: Iterable[tuple[str, str]],
    computed: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Rename entries by regular expressions, all of them in order, and leave out computed ones.

    Args:
        state_dict (dict): The file's.
        renames (Iterable[tuple[str, str]]): Pattern and replacement, as for :func:`re.sub`.
        computed (Sequence[str]): Patterns of entries that the model computes itself.

    Returns:
        dict: Under the model's names.

    Raises:
        ConversionError: If two entries get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if any(re.search(pattern, key) for pattern in computed):
            continue
        name = key
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ConversionError(f"'{key}' is the second entry for '{name}' in this file.")
        renamed[name] = value
    return renamed


def fit(
    model: nn.Module, state_dict: dict[str, Tensor], new: Sequence[str] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Give every parameter and buffer of the model its entry, in the model's shape.

    Shapes may differ by axes of size 1: a 1x1 convolution is a linear layer.

    Args:
        model (nn.Module): What the entries are for.
        state_dict (dict): Under the model's names.
        new (Sequence[str]): Patterns of entries that may be missing; the model's own stay.

    Returns:
        tuple[dict, tuple[str, ...]]: The complete state dict, and the names that stayed.

    Raises:
        ConversionError: If an entry is missing, has no place or another size.
    """
    wanted = model.state_dict()
    kept = [key for key in wanted if key not in state_dict and any(re.search(p, key) for p in new)]
    missing = [key for key in wanted if key not in state_dict and key not in kept]
    unexpected = [key for key in state_dict if key not in wanted]
    if missing or unexpected:
        raise ConversionError(
            'The file does not fit the model: '
            f'missing {_named(missing)}; unexpected {_named(unexpected)}.'
        )
    fitted = {
        key: value if key in kept else _reshaped(key, state_dict[key], value)
        for key, value in wanted.items()
    }
    return fitted, tuple(kept)


def write_checkpoint(converted: Converted, file: str | os.PathLike) -> None:
    """Write a checkpoint as mmengine does, with the backbone's config in its ``meta``."""
    os.makedirs(os.path.dirname(os.path.abspath(file)), exist_ok=True)
    torch.save(dict(meta=dict(backbone=converted.backbone), state_dict=converted.state_dict), file)


def report(converted: Converted, file: str | os.PathLike) -> str:
    """What was written, what in it is new, and how a dense config starts from it."""
    option = 'model.backbone.init_cfg'
    lines = [
        f'{file}: {len(converted.state_dict)} entries for backbone={converted.backbone}',
        f'{len(converted.new)} of them are new, at their initial values'
        + ''.join(f'\n  {name}' for name in converted.new),
        f'To start from it: --cfg-options {option}.type=Pretrained {option}.checkpoint={file} '
        f'{option}.prefix=backbone.',
    ]
    return '\n'.join(lines)


def _reshaped(key: str, value: Tensor, like: Tensor) -> Tensor:
    if [n for n in value.shape if n != 1] != [n for n in like.shape if n != 1]:
        raise ConversionError(
            f"'{key}' has shape {tuple(value.shape)} in the file, {tuple(like.shape)} in the model."
        )
    return value.reshape(like.shape).to(like.dtype)


def _named(keys: Sequence[str]) -> str:
    if not keys:
        return 'none'
    more = f' and {len(keys) - NAMED} more' if len(keys) > NAMED else ''
    return ', '.join(f"'{key}'" for key in keys[:NAMED]) + more
