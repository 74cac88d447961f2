"""RoPE as one complex multiplication, with its factors kept from call to call.

A pair of adjacent channels is a complex number, and turning it by an angle multiplies it by
``exp(i angle)``: one pass over the tokens where sines and cosines take four.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .precision import at_least_float32
from .rope import apply_rope, rope_2d, rope_frequencies


def rotate(x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """Turn queries or keys: ``apply_rope(x, rope_2d(hw_shape, d))``.

    Args:
        x (Tensor): Shape (B, H, N, d), d a multiple of 4.
        hw_shape (tuple[int, int]): Height and width of the grid, N = height * width.

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``x``.
    """
    wide = at_least_float32(x)
    if symbolic():
        return apply_rope(x, rope_2d(hw_shape, x.shape[-1], device=x.device, dtype=wide.dtype))
    return turn(wide, rotation(hw_shape, wide)).to(x.dtype)


def rotation(
    hw_shape: tuple[int, int], like: Tensor, rows: tuple[int, int] | None = None
) -> Tensor:
    """``exp(i angle)`` of every token.

    Args:
        hw_shape (tuple[int, int]): Height and width of the grid.
        like (Tensor): Its last dimension is d; device; float32 or float64.
        rows (tuple[int, int], optional): First row and the row after the last. Defaults to all.

    Returns:
        Tensor: Complex, shape (n, d/2).
    """
    height, width = hw_shape
    start, stop = rows or (0, height)
    by_row, by_column = (_factors(n, like.shape[-1], like.device, like.dtype) for n in hw_shape)
    by_row = by_row[start:stop, None].expand(-1, width, -1)
    return torch.cat((by_row, by_column.expand_as(by_row)), dim=-1).flatten(0, 1)


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Multiply pairs of channels of x (..., N, d) by complex factors (N, d/2)."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation
    return torch.view_as_real(turned).flatten(-2)


def symbolic() -> bool:
    """Whether a compiler or exporter is looking: complex numbers are foreign to most of them, and
    they fuse the plain form themselves."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@lru_cache(maxsize=32)
def _factors(length: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Outside inference mode: a table made within could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        position = torch.arange(length, device=device, dtype=dtype)
        angle = position[:, None] * rope_frequencies(head_dim, device=device, dtype=dtype)
        return torch.polar(torch.ones_like(angle), angle)
