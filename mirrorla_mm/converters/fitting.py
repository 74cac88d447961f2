"""Fit the entries of a file to a model, strictly.

Nothing is guessed: an entry without a place and a parameter without an entry are errors that name
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .converted import ConversionError

NAMED = 8


class _Unallocated(TorchFunctionMode):
    """Parameters and indices get a shape, but no memory."""

    CONSTRUCTORS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.arange)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.CONSTRUCTORS:
            kwargs = {**kwargs, 'device': 'meta'}
        return func(*args, **kwargs)


def fit_built(
    build: Callable[[], nn.Module],
    state_dict: dict[str, Tensor],
    new: Sequence[str] = (),
    gated: Sequence[str] = (),
    seed: int = 0,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """:func:`fit` to a model whose sizes a file has told, and which may be any.

    Args:
        build (Callable): Builds the model; memory is taken only once all entries fit.
        state_dict (dict): As for :func:`fit`.
        new (Sequence[str]): As for :func:`fit`.
        gated (Sequence[str]): As for :func:`fit`.
        seed (int): Of the initial values of what is new.
    """
    with _Unallocated():
        unallocated = build()
    fitted, kept = fit(unallocated, state_dict, new, gated)
    if not kept:
        return fitted, kept
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit(build(), state_dict, new, gated)


def fit(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    new: Sequence[str] = (),
    gated: Sequence[str] = (),
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Give every parameter and buffer of the model its entry, in the model's shape.

    Shapes may differ by axes of size 1: a 1x1 convolution is a linear layer.

    Args:
        model (nn.Module): What the entries are for.
        state_dict (dict): Under the model's names.
        new (Sequence[str]): Patterns of entries that may be missing; the model's own stay.
        gated (Sequence[str]): Patterns of packed projections to q, k and v, after which the model
            may have a gate: its own rows of that stay.

    Returns:
        tuple[dict, tuple[str, ...]]: The complete state dict, and the names that stayed in whole or
        in part.

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
    given = {key: state_dict[key] for key in wanted if key not in kept}
    for key, value in given.items():
        if any(re.search(p, key) for p in gated) and _lacks_a_gate(value, wanted[key]):
            given[key] = torch.cat((value.to(wanted[key]), wanted[key][len(value) :]))
            kept.append(key)
    fitted = {
        key: _reshaped(key, given[key], value) if key in given else value
        for key, value in wanted.items()
    }
    return fitted, tuple(kept)


def _lacks_a_gate(value: Tensor, like: Tensor) -> bool:
    """Whether an entry has three of the model's four parts of rows."""
    same = value.shape[1:] == like.shape[1:] and value.is_floating_point()
    return same and value.dim() > 0 and 4 * len(value) == 3 * len(like)


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
