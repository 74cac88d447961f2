"""The feature maps phi of queries and keys, one for all plain backends."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .linear_attention import elu_feature_map
from .options import Options
from .reflection import reflect


def features(
    x: Tensor, theta: Tensor | None, options: Options, reflect: Callable[..., Tensor] = reflect
) -> Tensor:
    """``phi(x)``, non-negative.

    Args:
        x (Tensor): Queries or keys, shape (B, H, N, d).
        theta (Tensor, optional): Base angles in radians, shape (H, d/2); for the mirror map alone.
        options (Options): Which map, and how its angles are modulated.
        reflect (Callable): Another way to compute :func:`~mirrorla_mm.ops.reflect`.

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``x``.
    """
    if options.feature_map == 'elu':
        return elu_feature_map(x)
    if options.mirrors:
        x = reflect(x, theta, options.lam, options.alpha_max, options.variance_aware)
    return F.relu(x)
