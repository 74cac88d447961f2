"""What every converter shares: strict renaming, strict fitting, one form of output.

A converter gives its key names as regular expressions, builds the model that the file is for and
fits it. Nothing is guessed: an entry without a place and a parameter without an entry are errors
that name them. Files come from strangers: whatever is wrong with one is a :class:`ConversionError`,
and no output is written before all of it fits.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..engine import load_checkpoint_file
from ..engine.errors import UserError
from ..engine.saving import AtomicLocalBackend

# Where training scripts keep the weights; those averaged over training come last, as the
# published figures are of the plain ones.
CONTAINERS = ('state_dict', 'model', 'module', 'model_ema')
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
NAMED = 8


class ConversionError(UserError, ValueError):
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
        ConversionError: If there are no weights in it, or something that is not one.
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
    for key, value in content.items():
        problem = _problem(key, value)
        if problem:
            raise ConversionError(f'{file} cannot be converted: {key!r} {problem}.')
    weights = {re.sub(r'^module\.', '', key): value.detach() for key, value in content.items()}
    if len(weights) < len(content):
        raise ConversionError(
            f"{file} has entries both with and without 'module.' before the name."
        )
    return weights


def _problem(key: Any, value: Any) -> str | None:
    """Why an entry of a file is no weight, if it is none."""
    if not isinstance(key, str):
        return 'is no name of a parameter'
    if not isinstance(value, Tensor):
        return f'is no tensor, but of type {type(value).__name__}'
    if value.layout != torch.strided or value.device.type != 'cpu' or value.dtype not in DTYPES:
        return f'is no plain tensor ({value.dtype}, {value.layout}, {value.device})'
    # A view with strides of 0 takes no room in the file, but would in the model.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f'has shape {tuple(value.shape)}, which is more than the file holds'
    if not value.isfinite().all():
        return 'holds numbers that are not finite'
    return None


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


def blames_the_file(convert: Callable[..., Converted]) -> Callable[..., Converted]:
    """Let a converter report whatever shapes in a file that make no sense bring about.

    A decorator. Errors in values, which have a message for people, stay what they are.
    """

    @functools.wraps(convert)
    def checked(*args, **kwargs) -> Converted:
        try:
            return convert(*args, **kwargs)
        except ValueError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConversionError(
                f'The shapes in this file are those of no model that can be built ({reason}).'
            ) from error

    return checked


def block_counts(
    state_dict: dict[str, Tensor], pattern: str, kind: str, first: int = 0
) -> tuple[int, ...]:
    """The number of blocks of each stage.

    Args:
        state_dict (dict): The file's.
        pattern (str): What a block's entries begin with, with groups for stage and block.
        kind (str): Of models, for the message.
        first (int): Number of the first stage; blocks count from 0.

    Raises:
        ConversionError: If there are no blocks, or numbers are left out.
    """
    matches = (re.match(pattern, key) for key in state_dict)
    blocks = {tuple(map(int, match.groups())) for match in matches if match}
    stages = sorted({stage for stage, _ in blocks})
    counts = tuple(sum(stage == s for s, _ in blocks) for stage in stages)
    if not blocks or blocks != {(first + s, b) for s, n in enumerate(counts) for b in range(n)}:
        raise ConversionError(
            f'This is no official {kind} file: its blocks are not numbered one after the other.'
        )
    return counts


class _Unallocated(TorchFunctionMode):
    """Parameters and indices get a shape, but no memory."""

    CONSTRUCTORS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.arange)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.CONSTRUCTORS:
            kwargs = {**kwargs, 'device': 'meta'}
        return func(*args, **kwargs)


def fit_built(
    build: Callable[[], nn.Module], state_dict: dict[str, Tensor], new: Sequence[str] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """:func:`fit` to a model whose sizes a file has told, and which may be any.

    Args:
        build (Callable): Builds the model; memory is taken only once all entries fit.
        state_dict (dict): As for :func:`fit`.
        new (Sequence[str]): As for :func:`fit`.
    """
    with _Unallocated():
        unallocated = build()
    fitted, kept = fit(unallocated, state_dict, new)
    return fit(build(), state_dict, new) if kept else (fitted, kept)


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
        ConversionError: If an entry is missing, has no place, another size or another kind of
            numbers.
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
    """Write a checkpoint as mmengine does, with the backbone's config in its ``meta``.

    Raises:
        OSError: If it cannot be written; then there is no new file, and an old one is untouched.
    """
    content = io.BytesIO()
    torch.save(
        dict(meta=dict(backbone=converted.backbone), state_dict=converted.state_dict), content
    )
    AtomicLocalBackend().put(content.getvalue(), os.fspath(file))


def convert_file(
    convert: Callable[[dict[str, Tensor]], Converted],
    src: str | os.PathLike,
    dst: str | os.PathLike,
) -> Converted:
    """Read a file, convert and write it.

    Args:
        convert (Callable): A converter.
        src (str | os.PathLike): Official file.
        dst (str | os.PathLike): Checkpoint to write, only if all goes well.

    Returns:
        Converted: What was written.

    Raises:
        CheckpointError: If ``src`` is damaged or asks to run code.
        ConversionError: If it is not what the converter reads; the message names the file.
        OSError: If there is no such file, or ``dst`` cannot be written.
    """
    weights = read_state_dict(src)
    try:
        converted = convert(weights)
    except ValueError as error:
        reason = str(error)
        raise ConversionError(
            f'{src} cannot be converted: {reason[:1].lower()}{reason[1:]}'
        ) from error
    write_checkpoint(converted, dst)
    return converted


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
    if value.is_floating_point() != like.is_floating_point():
        raise ConversionError(
            f"'{key}' holds {value.dtype} numbers in the file, {like.dtype} in the model."
        )
    return value.reshape(like.shape).to(like.dtype)


def _named(keys: Sequence[str]) -> str:
    if not keys:
        return 'none'
    more = f' and {len(keys) - NAMED} more' if len(keys) > NAMED else ''
    return ', '.join(f"'{key}'" for key in keys[:NAMED]) + more
