"""NP-Map, STILL's norm-preserving feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import at_least_float32, without_autocast
from .reflection import unit_vector

NP_EPS = 1e-12


def householder(u: Tensor) -> Tensor:
    """The matrix ``I - 2 u u^T / |u|^2``: :func:`~mirrorla_mm.ops.cross_head_reflection` of one
    head.

    Args:
        u (Tensor): Mirror vectors of any length but zero, shape (..., d).

    Returns:
        Tensor: Symmetric and orthogonal, shape (..., d, d), float32 at least.
    """
    unit = unit_vector(u)
    identity = torch.eye(u.shape[-1], dtype=unit.dtype, device=u.device)
    return identity - 2 * unit.unsqueeze(-1) * unit.unsqueeze(-2)


@without_autocast
def np_map(x: Tensor, turned: Tensor) -> Tensor:
    """``[softmax(u), softmax(-u)]`` with ``u = |x| f(x) / |f(x)|``.

    Whatever f is, the features are of a vector as long as x; where f keeps lengths, as a reflection
    does, u is f(x) itself.

    Args:
        x (Tensor): Queries or keys, shape (..., d).
        turned (Tensor): f(x), shape (..., d).

    Returns:
        Tensor: Positive, shape (..., 2d), float32 at least.

    Source: Meng et al., "STILL", arXiv 2602.02180.
    """
    x, turned = at_least_float32(x), at_least_float32(turned)
    length, turned_length = (
        torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (x, turned)
    )
    u = turned * (length / turned_length.clamp(min=NP_EPS))
    return torch.cat((u.softmax(dim=-1), (-u).softmax(dim=-1)), dim=-1).clamp(min=NP_EPS)
