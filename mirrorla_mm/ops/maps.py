"""Tokens and maps: the same numbers, as (B, N, C) and as (B, C, H, W)."""

from __future__ import annotations

from math import prod

import torch.nn.functional as F
from torch import Tensor


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C): a view of a channels-last map.

    Runtimes of exported graphs fuse this transposition with the layout of the convolution before.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """(B, N, C) to a channels-last (B, C, H, W), without a copy.

    Splitting before transposing keeps the batch's stride right when B = 1; with any other the
    convolution would not recognise channels-last memory and copy the map twice.
    """
    return x.unflatten(1, tuple(hw_shape)).permute(0, 3, 1, 2)


def check_map(hw_shape: tuple[int, int], tokens: int) -> None:
    """Raise a ValueError unless a map of this height and width holds so many tokens."""
    if prod(hw_shape) != tokens:
        raise ValueError(f'hw_shape {tuple(hw_shape)} does not hold {tokens} tokens.')


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of a map (B, C, h, w) to (B, C, *size); itself where sizes agree."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode='bilinear')
