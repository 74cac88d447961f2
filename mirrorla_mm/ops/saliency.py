"""How much a token attends to itself, and which tokens that makes salient."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import at_least_float32

SALIENCY_EPS = 1e-8
# Logarithms that differ by less are ties, and a tie goes to the first token: so rounding alone,
# which differs from device to device and with the size of a batch, decides nothing.
RESOLUTION = 4096
LEAST_LOG = -(2.0**20)


def self_saliency(own: Tensor, eps: float = SALIENCY_EPS) -> Tensor:
    """STILL's self-saliency score, in closed form.

    ``S(a) = a log((a + eps) / eps) + (1 - a) log(1 - a)`` with ``a`` the attention that a token
    pays to itself within its window. S rises with a, so an order by a is the order by S.

    Args:
        own (Tensor): a, in [0, 1], any shape.
        eps (float): Keeps the logarithm finite.

    Returns:
        Tensor: Of the same shape, float32 at least.

    Source: Meng et al., "STILL", arXiv 2602.02180; the closed form is ours.
    """
    own = at_least_float32(own)
    rest = 1 - own
    return torch.xlogy(own, (own + eps) / eps) + torch.xlogy(rest, rest)


def self_saliency_divergence(logits: Tensor, own: Tensor, eps: float = SALIENCY_EPS) -> Tensor:
    """STILL's self-saliency score as it is defined: what :func:`self_saliency` is the closed form
    of.

    ``sum_j a_j log((a_j + eps) / (a'_j + eps))`` with a the softmax of the logits in a token's
    window, and a' the same without its own logit.

    Args:
        logits (Tensor): Of a token's window, shape (..., n); -inf for what is not in it.
        own (Tensor): Index of the token itself, shape (...).
        eps (float): Keeps the logarithm finite.

    Returns:
        Tensor: Shape (...), float32 at least.
    """
    logits = at_least_float32(logits)
    own = own.unsqueeze(-1)
    with_own = logits.softmax(dim=-1)
    # A window of one token has nothing left, and no softmax.
    without = logits.scatter(-1, own, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    return (with_own * torch.log((with_own + eps) / (without + eps))).sum(dim=-1)


def log_self_attention(logits: Tensor, own: Tensor) -> Tensor:
    """Logarithm of the attention that tokens pay to themselves: it orders them as the score does.

    Args:
        logits (Tensor): Of each token's window, shape (..., n); -inf for what is not in it.
        own (Tensor): Its own logit among them, shape (...).

    Returns:
        Tensor: <= 0, shape (...); nothing is differentiated.
    """
    return own.detach() - logits.detach().logsumexp(dim=-1)


def most_salient(log_own: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The tokens with the largest self-attention.

    Args:
        log_own (Tensor): From :func:`log_self_attention`, shape (..., n).
        valid (Tensor): Whether a token is one, bool, to be broadcast to the same shape.
        count (int): How many to take, <= n.

    Returns:
        tuple[Tensor, Tensor]: Indices of shape (..., count), and whether each is a token: where
        there are fewer than ``count``, the others are not.
    """
    n = log_own.shape[-1]
    log_own = log_own.clamp(min=LEAST_LOG, max=0.0).masked_fill(~valid, 2 * LEAST_LOG)
    rank = (log_own * RESOLUTION).round().long() * n - torch.arange(n, device=log_own.device)
    index = rank.topk(count, dim=-1).indices
    return index, valid.expand_as(log_own).gather(-1, index)
