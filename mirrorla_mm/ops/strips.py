"""Inference on a CPU, strip by strip: no temporaries as large as a map, and strips stay in cache.

A chain of operations over a map of N tokens writes and reads each intermediate result through main
memory, and a CPU has to map fresh pages each time. Here a strip of rows goes through the whole
chain before the next one starts. A convolution also reads the rows beside the strip, and sums over
the tokens are added up from strip to strip, so the result is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import for_graphs, is_ordinary, is_transformed, plain_form
from .depthwise import depthwise_conv, same_padding
from .processor import has_bfloat16

# What the widest intermediate result of a strip may take, so that a strip's results stay in cache.
STRIP_BYTES = 6 << 20


def by_strips(x: Tensor) -> bool:
    """Whether to go strip by strip: on a CPU, without gradients, in a dtype that it computes in."""
    if x.device.type != 'cpu' or torch.is_grad_enabled() or plain_form() or for_graphs():
        return False
    if not is_ordinary(x) or is_transformed(x):
        return False
    dtype = strip_dtype(x)
    return dtype in (torch.float32, torch.float64) or (dtype is torch.bfloat16 and has_bfloat16())


def strip_dtype(x: Tensor) -> torch.dtype:
    """The dtype of layers in strips of x: its own or, but for float64, autocast's."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled('cpu'):
        return x.dtype
    return torch.get_autocast_dtype('cpu')


def or_by_strips(fast: Callable[..., Tensor]) -> Callable[[Callable], Callable[..., Tensor]]:
    """Decorate a method of a module: in evaluation, :func:`by_strips` given, ``fast`` runs instead.

    Both take the module, its input and the same further arguments, and return the same. ``fast``
    computes in the dtype of the input that it gets, under autocast that of autocast.
    """

    def decorate(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(plain)
        def run(module: torch.nn.Module, x: Tensor, *args) -> Tensor:
            if module.training or not by_strips(x):
                return plain(module, x, *args)
            x = x.to(strip_dtype(x))
            with torch.autocast('cpu', enabled=False):
                return fast(module, x, *args)

        return run

    return decorate


class Rows(NamedTuple):
    """Some rows of a map.

    Attributes:
        start (int): The first.
        stop (int): The one after the last.
    """

    start: int
    stop: int

    def tokens(self, width: int) -> slice:
        """Their tokens in row-major order."""
        return slice(self.start * width, self.stop * width)

    def read_by(self, kernel: int, stride: int, height: int) -> Rows:
        """The rows of an input of ``height`` that a convolution reads to make these rows."""
        start, stop = self._reach(kernel, stride)
        return Rows(max(start, 0), min(stop, height))

    def _reach(self, kernel: int, stride: int) -> tuple[int, int]:
        padding = kernel // 2
        return self.start * stride - padding, (self.stop - 1) * stride - padding + kernel


def row_strips(height: int, row_bytes: int) -> list[Rows]:
    """Cut a map into the fewest strips of nearly equal height that take ``STRIP_BYTES`` at most.

    A row that takes more makes a strip of its own.

    Args:
        height (int): Rows of the map.
        row_bytes (int): Size of one row of the widest intermediate result.
    """
    count = -(-height // at_once(row_bytes)) or 1
    bounds = [height * i // count for i in range(count + 1)]
    return [Rows(*pair) for pair in zip(bounds, bounds[1:])]


def at_once(size: int) -> int:
    """How many rows, tokens or small maps of ``size`` bytes each make a strip: at least one."""
    return max(1, STRIP_BYTES // max(size, 1))


def conv_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Rows,
    height: int,
    first: int = 0,
    stride: int = 1,
    groups: int = 1,
) -> Tensor:
    """Some rows of a convolution of a map, padded with half the kernel's size.

    Args:
        x (Tensor): The map, or those of its rows that :meth:`Rows.read_by` names, (B, C, h, W).
        weight (Tensor): Shape (C', C / groups, kernel height, kernel width), both odd.
        bias (Tensor, optional): Shape (C',).
        rows (Rows): Rows of the result.
        height (int): Rows of the whole map.
        first (int): Row of the whole map that ``x`` starts with.
        stride (int): Stride of the convolution.
        groups (int): Groups of the convolution.

    Returns:
        Tensor: Shape (B, C', rows.stop - rows.start, W').
    """
    vertical, horizontal = same_padding(weight)
    if rows == (0, (height - 1) // stride + 1):  # All rows: the convolution pads by itself.
        if stride == 1 and groups == len(weight) == x.shape[1]:
            return depthwise_conv(x, weight, bias)
        return F.conv2d(x, weight, bias, stride, (vertical, horizontal), groups=groups)
    start, stop = rows._reach(weight.shape[2], stride)
    top = max(start, 0)
    x = x[:, :, top - first : min(stop, height) - first]
    if start >= 0 and stop <= height:
        return F.conv2d(x, weight, bias, stride, (0, horizontal), groups=groups)
    if stride == 1:  # A few rows too many take less time than a padded copy.
        y = F.conv2d(x, weight, bias, 1, (vertical, horizontal), groups=groups)
        return y[:, :, rows.start - top : rows.stop - top]
    x = F.pad(x, (0, 0, max(-start, 0), max(stop - height, 0)))
    return F.conv2d(x, weight, bias, stride, (0, horizontal), groups=groups)
