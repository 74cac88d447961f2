"""Reflections folded into the projection before them: they are linear, so no token pays for them.

The algebra is exact. A cross-head reflection costs C^2 instead of NC. A block reflection has its
own angles in each picture; they follow from the covariance of the projection's input, as the
variance of a projected channel is ``w Cov(x) w^T``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .precision import at_least_float32, without_autocast
from .reflection import block_reflection, unit_vector, variance_aware_angle


@without_autocast
def token_covariance(x: Tensor) -> Tensor:
    """Covariance of the channels over the tokens, biased.

    Args:
        x (Tensor): Shape (B, N, C).

    Returns:
        Tensor: Shape (B, C, C), float32 at least.
    """
    x = at_least_float32(x)
    centred = x - x.mean(dim=1, keepdim=True)
    return centred.transpose(1, 2) @ centred / x.shape[1]


@without_autocast
def fold_cross_head_reflection(weight: Tensor, u: Tensor) -> Tensor:
    """``(I - 2uu^T / |u|^2) W``, which projects to what Eq. 18 would reflect.

    Args:
        weight (Tensor): Shape (C, C').
        u (Tensor): Mirror vector, shape (C,).

    Returns:
        Tensor: Shape (C, C').
    """
    unit = unit_vector(u).to(weight.dtype)
    return torch.addr(weight, unit, unit @ weight, alpha=-2)


@without_autocast
def fold_block_reflection(
    weight: Tensor,
    bias: Tensor | None,
    theta: Tensor,
    covariance: Tensor,
    lam: float = 1.0,
    alpha_max: float = math.pi / 2,
    variance_aware: bool = True,
) -> tuple[Tensor, Tensor]:
    """Projections to queries or keys that come out block-reflected, one for each picture.

    Args:
        weight (Tensor): Projection, cross-head reflection included, shape (H*d, C).
        bias (Tensor, optional): Shape (H*d,).
        theta (Tensor): Base angles in radians, shape (H, d/2).
        covariance (Tensor): From :func:`token_covariance`, shape (B, C, C).
        lam (float): See :func:`~mirrorla_mm.ops.reflect`.
        alpha_max (float): See :func:`~mirrorla_mm.ops.reflect`.
        variance_aware (bool): See :func:`~mirrorla_mm.ops.reflect`.

    Returns:
        tuple[Tensor, Tensor]: ``W'`` of shape (B, C, H*d) and ``b'`` of shape (B, 1, H*d) with
        ``x W' + b'`` the reflected queries or keys.
    """
    dtype, weight = weight.dtype, at_least_float32(weight)
    angle = at_least_float32(theta).expand(len(covariance), -1, -1)
    if variance_aware:
        # Rounding may leave a variance of zero slightly negative.
        variance = ((weight @ covariance) * weight).sum(-1).clamp_min(0)
        variance = variance.unflatten(-1, (*theta.shape, 2)).mean(-1)
        angle = variance_aware_angle(theta, variance, lam, alpha_max)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    columns = torch.cat((weight.t(), bias.unsqueeze(0))).unflatten(-1, (len(theta), -1))
    columns = block_reflection(columns.transpose(0, 1), angle).transpose(1, 2).flatten(2).to(dtype)
    return columns[:, :-1], columns[:, -1:]
