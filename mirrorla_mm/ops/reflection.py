"""The mirror map of MirrorLA in plain PyTorch: the reference for every faster path.

Tensors of heads have the shape (B, H, N, d): batch, heads, tokens, channels of one head. A block
is a pair of adjacent channels, so a head has d/2 of them, rounded down: of an odd d the last
channel has no partner and is not reflected. Angles and variances are computed in float32 at least,
whatever the input's dtype.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32, without_autocast

VARIANCE_EPS = 1e-6


@without_autocast
def cross_head_reflection(x: Tensor, u: Tensor) -> Tensor:
    """Reflect the whole channel vector, before it is split into heads (paper, Eq. 18).

    ``x - 2 u <x, u> / |u|^2``. It is linear and symmetric, so reflecting the columns of a
    projection's transposed weight, and its bias, is the same as reflecting what it projects.

    Args:
        x (Tensor): Shape (..., C).
        u (Tensor): Mirror vector of any length but zero, shape (C,).

    Returns:
        Tensor: Shape (..., C), dtype of ``x``.
    """
    return reflect_along(x, unit_vector(u))


@without_autocast
def reflect_along(x: Tensor, unit: Tensor) -> Tensor:
    """:func:`cross_head_reflection` by a mirror vector of length 1, from :func:`unit_vector`."""
    unit = unit.to(x.dtype)
    rows = x.reshape(-1, len(unit))
    return torch.addr(rows, rows @ unit, unit, alpha=-2).view(x.shape)


def unit_vector(u: Tensor) -> Tensor:
    """The direction of a mirror vector of any length, in float32 at least; zero for zero.

    Args:
        u (Tensor): Shape (..., C).
    """
    u = at_least_float32(u)
    # Squares of a very short vector would underflow.
    largest = u.detach().abs().amax(dim=-1, keepdim=True)
    return F.normalize(u / largest.clamp_min(torch.finfo(u.dtype).tiny), dim=-1)


def block_variance(x: Tensor) -> Tensor:
    """Variance of each two-channel block over the tokens, biased (paper, Eq. 12).

    Args:
        x (Tensor): Shape (B, H, N, d).

    Returns:
        Tensor: The mean of the two channel variances, >= 0, shape (B, H, d//2), float32 at least.
    """
    x = at_least_float32(x)
    return mean_of_pairs((x - x.mean(dim=-2, keepdim=True)).square().mean(dim=-2))


def mean_of_pairs(x: Tensor) -> Tensor:
    """Mean of each two adjacent channels: (..., d) to (..., d//2)."""
    blocks = x.shape[-1] // 2
    return x[..., : 2 * blocks].unflatten(-1, (blocks, 2)).mean(-1)


def variance_aware_angle(
    theta: Tensor,
    variance: Tensor,
    lam: float = 1.0,
    alpha_max: float = math.pi / 2,
    eps: float = VARIANCE_EPS,
) -> Tensor:
    """The modulated reflection angle (paper, Eq. 13 and 14).

    ``theta + sigmoid(lam / (variance + eps)) * alpha_max``.

    Args:
        theta (Tensor): Learnable base angle in radians, shape (H, d//2).
        variance (Tensor): From :func:`block_variance`, shape (B, H, d//2).
        lam (float): Sensitivity to the variance. Defaults to 1.
        alpha_max (float): Largest perturbation in radians. Defaults to pi/2.
        eps (float): Keeps the quotient finite for constant tokens.

    Returns:
        Tensor: Radians, shape (B, H, d//2), float32 at least. For ``lam`` > 0 it lies between
        ``theta + alpha_max / 2`` and ``theta + alpha_max``.
    """
    variance = at_least_float32(variance)
    return at_least_float32(theta) + torch.sigmoid(lam / (variance + eps)) * alpha_max


def block_reflection(x: Tensor, angle: Tensor) -> Tensor:
    """Reflect each two-channel block at the mirror of its angle (paper, Eq. 4 and Alg. 1).

    With ``u = (cos angle, sin angle)``, ``x - 2 u <x, u>``, that is the matrix
    ``[[-cos 2a, -sin 2a], [-sin 2a, cos 2a]]``. The paper's Eq. 6 has the opposite sign; a ReLU
    follows, so the sign is not free, and Eq. 4 and Alg. 1 agree on this one.

    Args:
        x (Tensor): Shape (B, H, N, d).
        angle (Tensor): Radians, shape (B, H, d//2) or (H, d//2).

    Returns:
        Tensor: Shape (B, H, N, d), the common dtype of ``x`` and ``angle``.
    """
    cos = torch.cos(2 * angle).unsqueeze(-2)
    sin = torch.sin(2 * angle).unsqueeze(-2)
    blocks = x.shape[-1] // 2
    first, second = x[..., : 2 * blocks].unflatten(-1, (blocks, 2)).unbind(-1)
    pairs = torch.stack((-cos * first - sin * second, cos * second - sin * first), -1).flatten(-2)
    if x.shape[-1] % 2 == 0:
        return pairs
    rest = x[..., 2 * blocks :].expand(*pairs.shape[:-1], 1)
    return torch.cat((pairs, rest.to(pairs.dtype)), -1)


@without_autocast
def reflect(
    x: Tensor,
    theta: Tensor,
    lam: float = 1.0,
    alpha_max: float = math.pi / 2,
    variance_aware: bool = True,
) -> Tensor:
    """Block reflection at the variance-aware angle: the mirror map without its ReLU.

    Args:
        x (Tensor): Queries or keys of all tokens of an image, shape (B, H, N, d).
        theta (Tensor): Base angle in radians, shape (H, d//2).
        lam (float): See :func:`variance_aware_angle`.
        alpha_max (float): See :func:`variance_aware_angle`.
        variance_aware (bool): False for the fixed angle ``theta`` ("full" in the paper's Tab. 8).

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``x``.
    """
    angle = at_least_float32(theta)
    if variance_aware:
        angle = variance_aware_angle(theta, block_variance(x), lam, alpha_max)
    return block_reflection(at_least_float32(x), angle).to(x.dtype)


def mirror_feature_map(x: Tensor, theta: Tensor, **options) -> Tensor:
    """The mirror map ``relu(H(Theta) x)`` (paper, Eq. 15 and Alg. 1), cross-head reflection apart.

    Arguments are those of :func:`reflect`.
    """
    return F.relu(reflect(x, theta, **options))
