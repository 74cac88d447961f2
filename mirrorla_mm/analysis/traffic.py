"""How many bytes the passes move, from their grids, against the floor.

The floor counts tensors as long as N: inputs, output and gradients, once per pass that cannot do
without them. What comes on top is as small as splits are few: sums of a split (d^2 numbers), and
statistics that every split reads again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mirrorla_mm.ops.fused import passes
from mirrorla_mm.ops.fused.launching import Launch, record_launches
from mirrorla_mm.ops.options import Options


class Traffic(NamedTuple):
    """Bytes that one launch reads and writes.

    Attributes:
        kernel (str): Name of the kernel.
        tokens (int): Of tensors as long as N.
        rest (int): At most, of split sums, statistics and the rotation table (once: it is cached).
    """

    kernel: str
    tokens: int
    rest: int


def traffic(launch: Launch) -> Traffic:
    """Count one recorded launch: a program reads its split's tokens and its head's statistics."""
    arguments = launch.arguments
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    tokens = rest = 0
    for name, x in tensors.items():
        if f'{name}_strides' in arguments:
            tokens += x.nbytes
        elif name == 'table':
            rest += x.nbytes
        elif name not in ('partial', 'counters'):
            rest += x.nbytes * launch.grid[1]
    return Traffic(launch.name, tokens, rest + _sums(launch))


def _sums(launch: Launch) -> int:
    """Every split writes a row of sums, every group reads its splits' rows and writes one more.

    A row is read twice where its numbers are weighed by what other rows hold.
    """
    if not launch.arguments.get('ROW'):
        return 0
    heads, splits, copies = launch.grid
    groups = math.ceil(splits / launch.arguments['group'])
    return 3 * heads * copies * (splits + groups) * launch.arguments['ROW'] * 4


def dry_run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: Options,
    needs: Sequence[bool] | None = None,
    more: bool = False,
) -> list[Launch]:
    """Launches of a forward, and with ``needs`` those of the backward instead, none of them run.

    Args:
        q (Tensor): Queries on the ``meta`` device, shape (B, H, N, d).
        k (Tensor): Keys, likewise.
        v (Tensor): Values, likewise.
        options (Options): What to compute.
        needs (Sequence[bool], optional): Which of q, k, v, theta and theta_k want a gradient.
        more (bool): Whether v has a further use, whose gradient is added. Defaults to False.
    """
    theta = q.new_empty(q.shape[1], q.shape[3] // 2, dtype=torch.float32)
    with record_launches() as forward:
        out, statistics = passes.forward(q, k, v, theta, None, options)
    if needs is None:
        return forward
    with record_launches() as backward:
        passes.backward(
            out, q, k, v, statistics,
            [passes.empty_out(x) if need else None for x, need in zip((q, k, v), needs)],
            options,
            needs_angles=needs[3:],
            out=out if out.dtype == torch.float16 else None,
            v_more=passes.empty_out(v) if more else None,
        )  # fmt: skip
    return backward


def floor_tensors(
    options: Options, *, backward: bool = False, saturates: bool = False, more: bool = False
) -> int:
    """Tensors of B x H x N x d numbers that a forward, or a backward of all inputs, has to move.

    An output that ``saturates`` is read again by every backward pass over the queries, the gradient
    of ``more`` uses of v by the one that writes v's.
    """
    by_variance, by_mean = options.reflects_by_variance, options.rank_augmented
    if not backward:
        return 4 + by_mean + 2 * by_variance
    two_over_queries = by_mean or by_variance
    rest = saturates * (1 + two_over_queries) + more
    return 7 + 2 * two_over_queries + 2 * by_variance + rest


def floor_bytes(
    shape: Sequence[int],
    dtype: torch.dtype,
    options: Options,
    *,
    backward: bool = False,
    more: bool = False,
) -> int:
    """Bytes that a forward or a backward has to move for q, k, v of one shape (B, H, N, d)."""
    saturates = dtype == torch.float16
    tensors = floor_tensors(options, backward=backward, saturates=saturates, more=more)
    return tensors * math.prod(shape) * dtype.itemsize
