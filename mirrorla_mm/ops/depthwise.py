"""Depth-wise convolutions on a CPU that find the gradient of wide weights fast.

oneDNN has kernels for the gradient of weights of at most three columns. For wider ones it falls
back to products that take some twenty times longer: of a 5x5 convolution of a 64x64 map of 64
channels, ten times the rest of its backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import is_single_on_cpu
from .processor import has_onednn

COLUMNS = 3  # of a weight, that oneDNN has kernels for


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A depth-wise convolution that keeps the size of the map.

    In single precision on a CPU the gradient of a wide weight is computed in bands of columns.
    Compilers, exporters and autocast get ``F.conv2d`` alone.

    Args:
        x (Tensor): Shape (B, C, H, W).
        weight (Tensor): Shape (C, 1, h, w), both odd.
        bias (Tensor, optional): Shape (C,).

    Returns:
        Tensor: Shape (B, C, H, W).
    """
    if _has_a_slow_gradient(x, weight):
        return _DepthwiseConv.apply(x, weight, bias)
    return _conv(x, weight, bias)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=same_padding(weight), groups=len(weight))


def _has_a_slow_gradient(x: Tensor, weight: Tensor) -> bool:
    wide = weight.requires_grad and torch.is_grad_enabled() and weight.shape[-1] > COLUMNS
    return wide and is_single_on_cpu(x, weight) and has_onednn(x.dtype)


def same_padding(weight: Tensor) -> tuple[int, int]:
    """Rows and columns that keep a map's size under a weight of odd sides."""
    return weight.shape[2] // 2, weight.shape[3] // 2


class _DepthwiseConv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _conv(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor, of_weight: Tensor, of_bias: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        return _conv(of_x, weight, of_bias) + _conv(x, of_weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _gradient(grad, x, weight, same_padding(weight), 0) if of_x else None,
            _gradient_in_bands(grad, x, weight) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
        )


def _gradient_in_bands(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a weight, each band of columns by what it reads of the map."""
    vertical, horizontal = same_padding(weight)
    x = F.pad(x, (horizontal, horizontal))
    bands = []
    for first, band in zip(range(0, weight.shape[-1], COLUMNS), weight.split(COLUMNS, -1)):
        read = x[..., first : first + grad.shape[-1] + band.shape[-1] - 1]
        bands.append(_gradient(grad, read, band, (vertical, 0), 1))
    return torch.cat(bands, -1)


def _gradient(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], which: int
) -> Tensor:
    """The gradient of a convolution's input (``which`` 0) or weight (1), alone.

    Not by :mod:`torch.nn.grad`, which does not know how the map lies in memory.
    """
    wanted = [which == 0, which == 1, False]
    ones = [1, 1]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, ones, padding, ones, False, [0, 0], len(weight), wanted
    )[which]
