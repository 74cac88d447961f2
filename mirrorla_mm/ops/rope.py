"""Two-dimensional rotary position embedding, as the RAVLT host uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import at_least_float32

ROPE_BASE = 10000.0


def rope_frequencies(
    head_dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Frequencies of the d/4 pairs that turn with one axis, from 1 down to 1/10000.

    Args:
        head_dim (int): d, a multiple of 4.

    Returns:
        Tensor: Radians per row or column, shape (d/4,).

    Raises:
        ValueError: If ``head_dim`` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(
            '2-D RoPE turns pairs of channels along two axes: head_dim needs to be a multiple of '
            f'4, got {head_dim}'
        )
    return ROPE_BASE ** -torch.linspace(0, 1, head_dim // 4, device=device, dtype=dtype)


def rope_2d(
    hw_shape: tuple[int, int],
    head_dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rotation angles of every token: the first d/4 pairs by its row, the others by its column.

    Args:
        hw_shape (tuple[int, int]): Height and width of the token grid, in tokens.
        head_dim (int): d, a multiple of 4.
        device (torch.device): Where to make the table.
        dtype (torch.dtype): float32 or float64.

    Returns:
        Tensor: Radians, shape (H*W, d/2), tokens in row-major order.
    """
    frequency = rope_frequencies(head_dim, device=device, dtype=dtype)
    rows, columns = (torch.arange(n, device=device, dtype=dtype) for n in hw_shape)
    row_angle = (rows[:, None] * frequency)[:, None].expand(*hw_shape, -1)
    column_angle = (columns[:, None] * frequency)[None].expand(*hw_shape, -1)
    return torch.cat((row_angle, column_angle), -1).flatten(0, 1)


def apply_rope(x: Tensor, angle: Tensor) -> Tensor:
    """Turn each pair of adjacent channels by its token's angle.

    Args:
        x (Tensor): Shape (..., N, d).
        angle (Tensor): From :func:`rope_2d`, shape (N, d/2).

    Returns:
        Tensor: Shape (..., N, d), dtype of ``x``.
    """
    cos, sin = torch.cos(angle), torch.sin(angle)
    first, second = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((cos * first - sin * second, sin * first + cos * second), -1)
    return turned.flatten(-2).to(x.dtype)
