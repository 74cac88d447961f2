"""Theorem 3.1 as an experiment: do modulated mirrors tell apart the tokens of a tight cluster?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import block_reflection, variance_aware_angle

WITHIN_MARGIN = 2.0
# Clusters tighter than this are drawn in as many rounds as they are times tighter.
WIDE = 0.05


@dataclass(frozen=True)
class Clusters:
    """Random clusters of two-channel tokens under one mirror map each.

    Attributes:
        disagreement (Tensor): Mean over token pairs of the number of mask bits that differ, from 0
            to 2, shape (clusters,).
        distance (Tensor): Mean distance of the token pairs, shape (clusters,).
        margin (Tensor): Distance of the reflected mean to the nearer ReLU boundary, over the
            cluster's standard deviation, shape (clusters,).
    """

    disagreement: Tensor
    distance: Tensor
    margin: Tensor

    @property
    def near(self) -> Tensor:
        """Clusters whose mean lies within two standard deviations of a boundary."""
        return self.margin < WITHIN_MARGIN

    def constant(self) -> float:
        """Mean disagreement over mean distance: what Eq. 17 bounds from below by c."""
        return (self.disagreement.mean() / self.distance.mean()).item()


def random_clusters(
    sigma: float,
    modulated: bool = True,
    count: int = 4096,
    tokens: int = 64,
    lam: float = 1.0,
    alpha_max: float = math.pi / 2,
    seed: int = 0,
) -> Clusters:
    """Draw clusters ``mean + sigma * noise`` with means of length 1 and random base angles.

    Args:
        sigma (float): Standard deviation of each channel.
        modulated (bool): Shift the angle by the variance (Eq. 13), or keep the base angle.
        count (int): Clusters.
        tokens (int): Tokens of each.
        lam (float): See :func:`~mirrorla_mm.ops.variance_aware_angle`.
        alpha_max (float): Likewise.
        seed (int): The same seed gives the same clusters and angles, modulated or not.

    Returns:
        Clusters: Their measurements.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.rand(count, generator=generator, dtype=torch.float64) * 2 * math.pi
    centre = torch.stack((direction.cos(), direction.sin()), -1)
    noise = torch.randn(count, tokens, 2, generator=generator, dtype=torch.float64)
    theta = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    x = centre[:, None] + sigma * noise
    variance = x.var(1, correction=0).mean(-1, keepdim=True)
    angle = variance_aware_angle(theta, variance, lam, alpha_max) if modulated else theta
    y = block_reflection(x, angle)
    return Clusters(
        disagreement=pair_disagreement(y > 0),
        distance=torch.stack([torch.nn.functional.pdist(cluster).mean() for cluster in x]),
        margin=y.mean(1).abs().amin(-1) / variance[:, 0].sqrt(),
    )


def many_clusters(sigma: float, *, seed: int = 0, **settings: Any) -> Clusters:
    """Draw the more clusters the tighter they are, so that as many lie near a boundary.

    The share of those falls as sigma does.

    Args:
        sigma (float): See :func:`random_clusters`.
        seed (int): Of the first round; each further one has the next.
        **settings: Likewise; ``count`` is that of a round.

    Returns:
        Clusters: Those of all rounds, :data:`WIDE` over sigma of them.
    """
    seeds = range(seed, seed + max(1, round(WIDE / sigma)))
    rounds = [vars(random_clusters(sigma, seed=one, **settings)) for one in seeds]
    return Clusters(**{name: torch.cat([each[name] for each in rounds]) for name in rounds[0]})


def pair_disagreement(mask: Tensor) -> Tensor:
    """Mean over pairs of different tokens of the number of bits that differ.

    Args:
        mask (Tensor): Shape (..., N, bits), N > 1.

    Returns:
        Tensor: Shape (...,), float64.
    """
    tokens = mask.shape[-2]
    on = mask.double().sum(-2)
    return (2 * on * (tokens - on)).sum(-1) / (tokens * (tokens - 1))
