"""Inference in strips of rows: no map-sized temporaries, and what a strip makes stays in cache.

A chain of operations over a map of N tokens writes and reads each intermediate result through main
memory, and on a CPU pays for mapping fresh pages each time. A strip of rows goes through the whole
chain instead. Convolutions take the rows beside the strip along and sums over the tokens run on, so
the result is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_attention import NORMALISER_EPS
from .rotation import symbolic, turn

# What the widest intermediate of a strip may take, so that a strip's results stay in cache.
STRIP_BYTES = 3 << 20


def streams(x: Tensor) -> bool:
    """Whether to work in strips: on a CPU, in single or double precision, without gradients.

    Compilers and exporters fuse and plan memory themselves, and a loop over strips would tie the
    graph to one size.
    """
    return (
        x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled('cpu')
        and not symbolic()
    )


def row_strips(height: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Split rows into strips of nearly equal height.

    Args:
        height (int): Rows of the map.
        row_bytes (int): Size of one row of the widest intermediate result.

    Yields:
        tuple[int, int]: First row of a strip and the row after its last.
    """
    strips = min(height, -(-height * row_bytes // STRIP_BYTES)) or 1
    bounds = [height * i // strips for i in range(strips + 1)]
    yield from zip(bounds, bounds[1:])


def input_rows(conv: torch.nn.Conv2d, rows: tuple[int, int], height: int) -> tuple[int, int]:
    """The rows of a map of ``height`` rows that ``conv`` reads to make the given output rows."""
    start, stop = _reach(conv, rows)
    return max(start, 0), min(stop, height)


def conv_rows(
    x: Tensor,
    conv: torch.nn.Conv2d,
    weight: Tensor,
    bias: Tensor | None,
    rows: tuple[int, int],
    first: int,
    height: int,
) -> Tensor:
    """Some rows of the convolution of a map, from the rows of the map that they need.

    Args:
        x (Tensor): Rows of a map, :func:`input_rows` at least, shape (B, C, h, W).
        conv (Conv2d): Kernel size, stride, padding and groups.
        weight (Tensor): Weight to use, such as ``conv``'s with a batch norm folded in.
        bias (Tensor, optional): Bias to use.
        rows (tuple[int, int]): First output row and the row after the last.
        first (int): Row of the map that ``x`` starts with.
        height (int): Rows of the whole map.

    Returns:
        Tensor: Shape (B, C', rows[1] - rows[0], W').
    """
    start, stop = _reach(conv, rows)
    x = x[:, :, max(start, 0) - first : min(stop, height) - first]
    if start < 0 or stop > height:
        x = F.pad(x, (0, 0, max(-start, 0), max(stop - height, 0)))
    return F.conv2d(x, weight, bias, conv.stride, (0, int(conv.padding[1])), groups=conv.groups)


def _reach(conv: torch.nn.Conv2d, rows: tuple[int, int]) -> tuple[int, int]:
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    return rows[0] * stride - padding, (rows[1] - 1) * stride - padding + kernel


class StreamedState:
    """The state of (rank-augmented) linear attention, summed over strips of keys and values.

    The softmax over all tokens that weighs them, :func:`~mirrorla_mm.ops.token_weights`, runs on:
    weights are relative to the largest score so far, and the sums shrink when it grows.

    Args:
        heads (int): Heads H.
        head_dim (int): Channels d of a head.
        mean_query (Tensor, optional): Mean feature of the queries, shape (H, d), for the
            rank-augmented state; without it all tokens count alike.
        like (Tensor): Device and dtype.
    """

    def __init__(self, heads: int, head_dim: int, mean_query: Tensor | None, like: Tensor) -> None:
        self.query = None if mean_query is None else mean_query.unsqueeze(-1) * head_dim**-0.5
        self.peak = like.new_full((heads, 1, 1), float('-inf'))
        self.total = like.new_zeros(heads, 1, 1)
        self.key = like.new_zeros(heads, 1, head_dim)
        self.state = like.new_zeros(heads, head_dim, head_dim)

    def add(self, k: Tensor, v: Tensor, rotation: Tensor | None) -> None:
        """Add features of keys and values, both of shape (H, n, d), turned by (n, d/2) factors."""
        weight = k.new_ones(*k.shape[:2], 1)
        if self.query is not None:
            weight = self._weights(k, self.query)
        self.total += weight.sum(1, keepdim=True)
        self.key.baddbmm_(weight.transpose(1, 2), k)
        turned = k if rotation is None else turn(k, rotation)
        self.state.baddbmm_(turned.transpose(1, 2), v * weight)

    def read(self, q: Tensor, rotation: Tensor | None) -> Tensor:
        """Attend from features of queries, (H, n, d) to the same shape."""
        normaliser = (q @ (self.key / self.total).transpose(1, 2)).add_(NORMALISER_EPS)
        turned = q if rotation is None else turn(q, rotation)
        return (turned @ (self.state / self.total)).div_(normaliser)

    def _weights(self, k: Tensor, query: Tensor) -> Tensor:
        scores = k @ query
        peak = torch.maximum(self.peak, scores.amax(1, keepdim=True))
        decay = torch.exp(self.peak - peak)
        for total in (self.total, self.key, self.state):
            total *= decay
        self.peak = peak
        return scores.sub_(peak).exp_()
