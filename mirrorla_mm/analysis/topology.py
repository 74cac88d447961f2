"""Attention between queries and keys before and after a feature map (paper, Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import Reflection
from ..ops import cross_head_reflection


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


def reflected(q: Tensor, k: Tensor, reflection: Reflection) -> tuple[Tensor, Tensor]:
    """Cross-head and block reflections of raw q and k, each (1, H, N, d)."""
    u_k = reflection.u if reflection.u_k is None else reflection.u_k
    if reflection.u is not None:
        q, k = (_across_heads(x, u) for x, u in ((q, reflection.u), (k, u_k)))
    return reflection(q, k)


def _across_heads(x: Tensor, u: Tensor) -> Tensor:
    heads = x.shape[1]
    y = cross_head_reflection(x.transpose(1, 2).flatten(2), u)
    return y.unflatten(-1, (heads, -1)).transpose(1, 2)


@torch.no_grad()
def paradigms(q: Tensor, k: Tensor, reflection: Reflection, head: int = 0) -> list[Topology]:
    """The columns of Fig. 1: identity, plain reflection, ReLU, and ReLU after the reflection.

    Args:
        q (Tensor): Raw queries, shape (1, H, N, d).
        k (Tensor): Raw keys, shape (1, H, N, d).
        reflection (Reflection): Its fixed angles are used for the plain reflection, which is an
            isometry only if q and k are turned by the same one.
        head (int): Which head to look at.

    Returns:
        list[Topology]: In the order of the figure.
    """
    turned = reflected(q, k, reflection)
    shared = _shared_isometry(q, k, reflection)
    maps = {
        'identity': (q, k),
        'plain reflection': shared,
        'ReLU': (q.relu(), k.relu()),
        'ReLU after reflection': tuple(x.relu() for x in turned),
    }
    scale = q.shape[-1] ** -0.5
    return [_topology(name, a[0, head], b[0, head], scale) for name, (a, b) in maps.items()]


def _shared_isometry(q: Tensor, k: Tensor, reflection: Reflection) -> tuple[Tensor, Tensor]:
    """Block-reflect q and k at the base angles: the same mirror for both."""
    from ..ops import block_reflection

    return block_reflection(q, reflection.theta), block_reflection(k, reflection.theta)


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
