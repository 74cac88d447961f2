"""Two-dimensional rotary position embedding, as the RAVLT host uses it.

:func:`rope_2d` and :func:`apply_rope` are the plain form. :class:`Rope` is what attention uses: the
same in one pass over the tokens where sines and cosines take four.
"""

from __future__ import annotations

from functools import cached_property
from threading import Lock

import torch
from torch import Tensor

from .backend import capturing, is_ordinary, is_transformed
from .precision import at_least_float32

ROPE_BASE = 10000.0
# What :func:`axis_factors` keeps, the oldest first.
LARGEST_CACHE = 32
_tables: dict[tuple, Tensor] = {}
_lock = Lock()


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


class Rope:
    """The embedding of a grid of tokens, or of some of its rows; call it to turn queries or keys.

    A pair of adjacent channels is a complex number, and turning it by an angle multiplies it by
    ``exp(i angle)``. Compilers and exporters do not know complex numbers: they get the plain form.

    Args:
        hw_shape (tuple[int, int]): Height and width of the grid, in tokens.
        head_dim (int): d, a multiple of 4.
        like (Tensor): Its device and dtype (at least float32) are those of the factors.
        plain (bool): Use :func:`apply_rope`. Defaults to False.
        rows (slice): Rows of the grid. Defaults to all.
    """

    def __init__(
        self,
        hw_shape: tuple[int, int],
        head_dim: int,
        like: Tensor,
        plain: bool = False,
        rows: slice = slice(None),
    ) -> None:
        self.hw_shape = hw_shape
        self.head_dim = head_dim
        self.like = like
        self.plain = plain
        self.rows = rows

    def __getitem__(self, rows: slice) -> Rope:
        """Of the tokens of some rows."""
        return Rope(self.hw_shape, self.head_dim, self.like, self.plain, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """Turn queries or keys (..., N, d), or (..., N, m d) as m parts of the same angles."""
        parts = at_least_float32(x).unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)
        if self.plain:
            turned = apply_rope(parts, self._angles)
        else:
            turned = torch.view_as_real(as_complex(parts) * self._factors).flatten(-2)
        return turned.transpose(-2, -3).flatten(-2).to(x.dtype)

    @property
    def _angles(self) -> Tensor:
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        angles = rope_2d(self.hw_shape, self.head_dim, device=self.like.device, dtype=dtype)
        return angles.unflatten(0, tuple(self.hw_shape))[self.rows].flatten(0, 1)

    @cached_property
    def _factors(self) -> Tensor:
        by_row, by_column = (axis_factors(n, self.head_dim, self.like) for n in self.hw_shape)
        by_row = by_row[self.rows, None].expand(-1, len(by_column), -1)
        return torch.cat((by_row, by_column.expand_as(by_row)), dim=-1).flatten(0, 1)


def as_complex(x: Tensor) -> Tensor:
    """Pairs of adjacent channels (..., d) as complex (..., d/2), copied only where they have to be.

    Args:
        x (Tensor): float32 or float64, d even.
    """
    pairs = x.unflatten(-1, (-1, 2))
    places = (*pairs.stride()[:-1], pairs.storage_offset())
    if pairs.stride(-1) != 1 or any(place % 2 for place in places):
        pairs = pairs.contiguous()
    return torch.view_as_complex(pairs)


def axis_factors(length: int, head_dim: int, like: Tensor) -> Tensor:
    """``exp(i angle)`` along one axis: complex, shape (length, d/4), kept from call to call.

    A captured graph makes its own: a kept one may be dropped and its memory written again before a
    replay, and one that the graph makes holds nothing before that.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    key = (length, head_dim, like.device, dtype)
    shared = is_ordinary(like) and not capturing(like.device)
    known = _tables.get(key) if shared else None
    if known is not None:
        return known
    # Outside inference mode: a table made within could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        position = torch.arange(length, device=like.device, dtype=dtype)
        frequency = rope_frequencies(head_dim, device=like.device, dtype=dtype)
        angle = position[:, None] * frequency
        table = torch.polar(torch.ones_like(angle), angle)
    # A fake tensor is of no use to others.
    if shared and is_ordinary(table) and not is_transformed():
        with _lock:
            if len(_tables) >= LARGEST_CACHE:
                del _tables[next(iter(_tables))]
            _tables[key] = table
    return table
