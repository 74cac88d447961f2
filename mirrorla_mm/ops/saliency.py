"""How much a token attends to itself, and which tokens that makes salient."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import at_least_float32

SALIENCY_EPS = 1e-8
# Log-odds that differ by less are ties, and a tie goes to the first token: so rounding alone,
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


def self_attention_odds(others: Tensor, own: Tensor) -> Tensor:
    """Log-odds of the attention that tokens pay to themselves: they order them as the score does.

    ``log(a / (1 - a))``, from the logits, so that attention near 1 is told apart as well.

    Args:
        others (Tensor): Logits of each token's window, shape (..., n); -inf for the token itself
            and for what is not in the window.
        own (Tensor): Its own logit, shape (...).

    Returns:
        Tensor: Shape (...), inf for a token that is alone; nothing is differentiated.
    """
    return own.detach() - others.detach().logsumexp(dim=-1)


def most_salient(odds: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The tokens with the largest self-attention.

    Args:
        odds (Tensor): From :func:`self_attention_odds`, shape (..., n).
        valid (Tensor): Whether a token is one, bool, to be broadcast to the same shape.
        count (int): How many to take, <= n.

    Returns:
        tuple[Tensor, Tensor]: Indices of shape (..., count), and whether each is a token: where
        there are fewer than ``count``, the others are not.
    """
    n = odds.shape[-1]
    odds = odds.clamp(min=LEAST_LOG, max=-LEAST_LOG).masked_fill(~valid, 2 * LEAST_LOG)
    rank = (odds * RESOLUTION).round().long() * n - torch.arange(n, device=odds.device)
    index = rank.topk(count, dim=-1).indices
    return index, valid.expand_as(odds).gather(-1, index)
