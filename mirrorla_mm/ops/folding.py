"""Variance-aware reflections folded into the projection before them, exactly.

A reflection is linear: to reflect the columns of a projection is to reflect all that it projects,
at a cost that does not grow with the tokens. The angles differ from image to image. They follow
from the covariance of the projection's input, as the variance of a projected channel is ``w Cov(x)
w^T``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .backend import symbolic
from .precision import at_least_float32, without_autocast
from .products import PLAIN, Products
from .reflection import block_reflection, mean_of_pairs, variance_aware_angle
from .strips import at_once


@without_autocast
def token_covariance(x: Tensor, products: Products = PLAIN) -> Tensor:
    """Covariance of the channels over the tokens, biased.

    Args:
        x (Tensor): Shape (B, N, C).
        products (Products): How to multiply matrices. Defaults to torch's own way.

    Returns:
        Tensor: Shape (B, C, C), float32 at least.
    """
    mean = x.mean(dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    total = mean.new_zeros(x.shape[0], 1, x.shape[2], x.shape[2])
    # In parts on a CPU, so that the centred tokens stay in cache; a GPU would launch more kernels.
    in_parts = x.device.type == 'cpu' and not symbolic()
    parts = x.split(at_once(x[:, :1].nbytes), dim=1) if in_parts else [x]
    for part in parts:
        centred = (at_least_float32(part) - mean).unsqueeze(1)
        total = total + products.gather(centred, centred)
    return total.squeeze(1) / x.shape[1]


@without_autocast
def projected_angle(
    weight: Tensor,
    x: Tensor,
    theta: Tensor,
    lam: float = 1.0,
    alpha_max: float = math.pi / 2,
    products: Products = PLAIN,
) -> Tensor:
    """The modulated angles of queries or keys before they are projected.

    Args:
        weight (Tensor): Projection, cross-head reflection included, shape (H*d, C).
        x (Tensor): What will be projected, shape (B, N, C).
        theta (Tensor): Base angles in radians, shape (H, d//2).
        lam (float): See :func:`~mirrorla_mm.ops.reflect`.
        alpha_max (float): See :func:`~mirrorla_mm.ops.reflect`.
        products (Products): How to multiply matrices. Defaults to torch's own way.

    Returns:
        Tensor: Radians, shape (B, H, d//2), float32 at least.
    """
    # Columns, on the right: an exporter would fix the batch's size otherwise.
    columns = at_least_float32(weight).t()
    return angle_of_covariance(columns, token_covariance(x, products), theta, lam, alpha_max)


def angle_of_covariance(
    columns: Tensor, covariance: Tensor, theta: Tensor, lam: float, alpha_max: float
) -> Tensor:
    """:func:`projected_angle` from the transposed weight (C, H*d) and the covariance (B, C, C)."""
    # Rounding may leave a variance of zero slightly negative.
    variance = ((covariance @ columns) * columns).sum(-2).clamp_min(0)
    variance = mean_of_pairs(variance.unflatten(-1, (len(theta), -1)))
    return variance_aware_angle(theta, variance, lam, alpha_max)


@without_autocast
def fold_block_reflection(
    weight: Tensor, bias: Tensor | None, angle: Tensor
) -> tuple[Tensor, Tensor]:
    """Projections to queries or keys that come out block-reflected.

    Args:
        weight (Tensor): Projection, cross-head reflection included, shape (H*d, C).
        bias (Tensor, optional): Shape (H*d,).
        angle (Tensor): Radians, shape (H, d//2), or (B, H, d//2) for a projection of each image.

    Returns:
        tuple[Tensor, Tensor]: ``W'`` of shape (C, H*d) and ``b'`` of shape (1, H*d), or of (B, C,
        H*d) and (B, 1, H*d), with ``x W' + b'`` the reflected queries or keys.
    """
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    columns = at_least_float32(torch.cat((weight.t(), bias.unsqueeze(0))))
    columns = columns.unflatten(-1, (angle.shape[-2], -1)).transpose(0, 1)
    columns = block_reflection(columns, at_least_float32(angle)).transpose(-3, -2).flatten(-2)
    return columns[..., :-1, :].to(weight.dtype), columns[..., -1:, :].to(weight.dtype)
