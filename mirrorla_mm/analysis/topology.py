"""Attention between queries and keys before and after a feature map (paper, Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import Reflection
from ..ops import block_reflection


@dataclass(frozen=True)
class Topology:
    """Attention of one head under one feature map, and numbers about it.

    Attributes:
        label (str): The feature map.
        components (Tensor): Scores of the attention's rows on their first three principal
            components, shape (N, 3).
        dead (float): Share of the feature channels, of q and k, that are zero for every token.
        zero (float): Share of zero entries in the features.
        rank (float): Effective rank of the attention: exp of the entropy of its normalised
            singular values (Roy and Vetterli, 2007), from 1 to N.
        entropy (float): Mean entropy of a row over log N: 1 is uniform.
        disagreement (float): Expected share of channels in which the masks ``feature > 0`` of two
            different tokens differ.
    """

    label: str
    components: Tensor
    dead: float
    zero: float
    rank: float
    entropy: float
    disagreement: float


@torch.no_grad()
def paradigms(q: Tensor, k: Tensor, reflection: Reflection, head: int = 0) -> list[Topology]:
    """The columns of Fig. 1: identity, plain reflection, ReLU, and ReLU after the reflection.

    Args:
        q (Tensor): Raw queries, shape (1, H, N, d).
        k (Tensor): Raw keys, shape (1, H, N, d).
        reflection (Reflection): The plain reflection turns q and k by its base angles alone: the
            same mirror for both, hence an isometry.
        head (int): Which head to look at.

    Returns:
        list[Topology]: In the order of the figure.
    """
    maps = {
        'identity': (q, k),
        'plain reflection': tuple(block_reflection(x, reflection.theta) for x in (q, k)),
        'ReLU': (q.relu(), k.relu()),
        'ReLU after reflection': (
            reflection.reflect_all(q).relu(),
            reflection.reflect_all(k, key=True).relu(),
        ),
    }
    scale = q.shape[-1] ** -0.5
    return [_topology(name, a[0, head], b[0, head], scale) for name, (a, b) in maps.items()]


def _topology(label: str, q: Tensor, k: Tensor, scale: float) -> Topology:
    attention = (q @ k.t() * scale).softmax(-1)
    features = torch.stack((q, k))
    on = features > 0
    share = on.double().mean(1)
    tokens = len(q)
    return Topology(
        label,
        components=principal_components(attention),
        dead=(features == 0).all(1).double().mean().item(),
        zero=(features == 0).double().mean().item(),
        rank=effective_rank(attention),
        entropy=mean_entropy(attention),
        disagreement=(2 * share * (1 - share)).mean().item() * tokens / max(tokens - 1, 1),
    )


def principal_components(rows: Tensor, count: int = 3) -> Tensor:
    """Scores of the rows on their first principal components, shape (N, count)."""
    centred = rows.double() - rows.double().mean(0)
    u, s, _ = torch.svd_lowrank(centred, q=min(count + 5, *centred.shape), niter=6)
    scores = u * s
    # A singular vector's sign is free: make the largest entry positive, so that runs agree.
    scores = scores * scores.gather(0, scores.abs().argmax(0, keepdim=True)).sign()
    return torch.nn.functional.pad(scores[:, :count], (0, count - min(count, scores.shape[1])))


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the normalised singular values; 0 for a zero matrix."""
    values = torch.linalg.svdvals(matrix.double())
    if not values.any():
        return 0.0
    p = values / values.sum()
    return torch.special.entr(p).sum().exp().item()


def mean_entropy(attention: Tensor) -> float:
    """Mean entropy of the rows over that of the uniform distribution; 1 for a single column."""
    if attention.shape[-1] == 1:
        return 1.0
    entropy = torch.special.entr(attention.double()).sum(-1).mean()
    return (entropy / torch.tensor(attention.shape[-1]).double().log()).item()
