"""Covariance mixing by the cross-head reflection (paper, Eq. 19)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import cross_head_reflection


@dataclass(frozen=True)
class Mixing:
    """A covariance before and after ``H_c``, both (C, C) in float64, C = num_heads * d."""

    before: Tensor
    after: Tensor
    num_heads: int

    def spectrum_error(self) -> float:
        """Largest change of an eigenvalue over the largest eigenvalue; 0 in exact arithmetic."""
        before, after = (torch.linalg.eigvalsh(m) for m in (self.before, self.after))
        return ((before - after).abs().max() / before.abs().max()).item()

    def diagonal_mass(self) -> tuple[float, float]:
        """Share of the squared entries that lie in the heads' own blocks, before and after."""
        return tuple(self._mass(m) for m in (self.before, self.after))

    def head_variance(self) -> tuple[Tensor, Tensor]:
        """Variance of each head over the total, before and after, shape (H,)."""
        return tuple(
            m.diagonal().unflatten(0, (self.num_heads, -1)).sum(-1) / m.trace()
            for m in (self.before, self.after)
        )

    def _mass(self, m: Tensor) -> float:
        blocks = m.unflatten(0, (self.num_heads, -1)).unflatten(2, (self.num_heads, -1))
        own = blocks.diagonal(dim1=0, dim2=2)
        return (own.square().sum() / m.square().sum()).item()


def mixing(x: Tensor, u: Tensor, num_heads: int) -> Mixing:
    """Covariance of the concatenated heads over the tokens, before and after the reflection.

    Args:
        x (Tensor): Queries or keys before the reflection, shape (N, C).
        u (Tensor): Mirror vector, shape (C,).
        num_heads (int): H.

    Returns:
        Mixing: The two covariances.
    """
    x = x.double()
    return Mixing(x.t().cov(), cross_head_reflection(x, u.double()).t().cov(), num_heads)


def independent_heads(
    num_heads: int, head_dim: int, tokens: int = 4096, dead: int = 1, seed: int = 0
) -> Tensor:
    """Tokens whose heads are independent of each other, the last ``dead`` of them nearly silent.

    Returns:
        Tensor: Shape (tokens, num_heads * head_dim), float64.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for head in range(num_heads):
        noise = torch.randn(tokens, head_dim, generator=generator, dtype=torch.float64)
        mix = torch.randn(head_dim, head_dim, generator=generator, dtype=torch.float64)
        heads.append(noise @ mix * (0.01 if head >= num_heads - dead else 1.0))
    return torch.cat(heads, -1)
