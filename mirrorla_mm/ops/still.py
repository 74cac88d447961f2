"""STILL: exact attention to salient tokens, linear attention to the rest, under one denominator.

    y_t = (sum_E exp(s_tj - m_t) v_j + g_t * phi(q_t)^T sum_L phi(k_j) v_j^T)
          / (sum_E exp(s_tj - m_t) + phi(q_t)^T sum_L phi(k_j) + 1e-6)

with ``s = q k^T / sqrt(d)``, ``m_t`` the largest s_tj over E, and a gate g in the numerator alone.
The linear terms are not scaled by ``exp(-m_t)``: that is the published definition. E and L hold
each key once at most. For images they are

- E: the window of the query, and the most salient tokens of every window;
- L: all other tokens.

For sequences see :mod:`.still_causal`.

Source: Meng et al., "STILL", arXiv 2602.02180; the form for images is ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import symbolic
from .precision import at_least_float32, saturate, without_autocast
from .saliency import most_salient, self_attention_odds
from .windows import Windows

DENOMINATOR_EPS = 1e-6


@without_autocast
def one_denominator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi_q: Tensor,
    phi_k: Tensor,
    exact: Tensor,
    linear: Tensor,
    gate: Tensor | None = None,
) -> Tensor:
    """The formula above with its N x M matrices written out: the reference for all faster forms.

    Args:
        q (Tensor): Queries, shape (B, H, N, d).
        k (Tensor): Keys, shape (B, H, M, d).
        v (Tensor): Values, shape (B, H, M, e).
        phi_q (Tensor): Features of the queries, >= 0, shape (B, H, N, f).
        phi_k (Tensor): Features of the keys, >= 0, shape (B, H, M, f).
        exact (Tensor): Whether key j is in E of query t, bool, to be broadcast to (B, H, N, M).
        linear (Tensor): The same of L.
        gate (Tensor, optional): g, shape (B, H, N, e). Defaults to 1.

    Returns:
        Tensor: Shape (B, H, N, e), dtype of ``v``.
    """
    dtype = v.dtype
    q, k, v, phi_q, phi_k = map(at_least_float32, (q, k, v, phi_q, phi_k))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~exact, -torch.inf)
    weights = (scores - peak_of(scores)).exp()
    products = (phi_q @ phi_k.mT) * linear
    distant = products @ v
    if gate is not None:
        distant = distant * gate
    total = weights.sum(dim=-1, keepdim=True) + products.sum(dim=-1, keepdim=True)
    return saturate((weights @ v + distant) / (total + DENOMINATOR_EPS), dtype)


def peak_of(scores: Tensor) -> Tensor:
    """The largest score of each query.

    Args:
        scores (Tensor): -inf where a key does not count, shape (..., M).

    Returns:
        Tensor: Finite, also where no key counts, shape (..., 1).
    """
    return scores.max(dim=-1, keepdim=True).values.clamp(min=torch.finfo(scores.dtype).min)


def select(
    scores: Tensor, valid: Tensor, windows: Windows, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The salient tokens of an image, per head.

    Args:
        scores (Tensor): Of one query a key, within each window, shape (B, H, W, n, n).
        valid (Tensor): Whether a key is a token, bool, shape (W, n).
        windows (Windows): How many to take.
        grid (tuple[int, int]): Windows along each axis.

    Returns:
        tuple[Tensor, Tensor]: Indices into the tokens window by window, shape (B, H, S), and
        whether each is a token.
    """
    each, total = windows.candidates(grid)
    tokens = scores.shape[-1]
    odds = _odds_over_even(scores, valid.sum(-1, keepdim=True))
    index, real = most_salient(odds, valid, each)
    odds = odds.gather(-1, index).flatten(2)
    first = torch.arange(scores.shape[2], device=scores.device).unsqueeze(-1) * tokens
    index, real = (index + first).flatten(2), real.flatten(2)
    if windows.most is None:
        return index, real
    if symbolic():
        spare = (0, total)
        index, real, odds = F.pad(index, spare), F.pad(real, spare), F.pad(odds, spare)
    if total == index.shape[-1]:
        return index, real
    best, real = most_salient(odds, real, total)
    return index.gather(-1, best), real


def _odds_over_even(scores: Tensor, tokens: Tensor) -> Tensor:
    """Log-odds of the self-attention over those of an even attention to as many tokens.

    Without the latter a window that the border cuts would win: its tokens share with fewer others.

    Args:
        scores (Tensor): Of each token's window, -inf elsewhere, shape (..., n, n).
        tokens (Tensor): How many tokens the window has, to be broadcast to (..., n).
    """
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    others = scores.detach().masked_fill(itself, -torch.inf)
    odds = self_attention_odds(others, scores.diagonal(dim1=-2, dim2=-1))
    return odds + (tokens - 1).clamp(min=1).to(odds.dtype).log()


@without_autocast
def still_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi_q: Tensor,
    phi_k: Tensor,
    hw_shape: tuple[int, int],
    windows: Windows,
    gate: Tensor | None = None,
) -> Tensor:
    """STILL on the tokens of a map: ``N n d + N S d + 2 N d f`` multiplications a head.

    n are the tokens of a window and S the salient ones, gathered densely. The state of a query's
    tokens in L sums the other windows: nothing is subtracted, so nothing cancels. The states take
    ``(N / n) f (e + 1)`` numbers a head. Arguments are those of :func:`one_denominator`, and:

    Args:
        hw_shape (tuple[int, int]): Height and width of the map of queries.
        windows (Windows): Which tokens are exact.

    Returns:
        Tensor: Shape (B, H, N, e), dtype of ``v``.
    """
    dtype = v.dtype
    q, k, v, phi_q, phi_k = map(at_least_float32, (q, k, v, phi_q, phi_k))
    if 0 in (*q.shape[:3], k.shape[2]):
        return saturate(q.sum(-1, keepdim=True) * v.new_zeros(v.shape[-1]), dtype)
    q = q * q.shape[-1] ** -0.5
    grid = windows.grid(hw_shape)
    own = None
    if windows.reduction > 1:
        own = windows.cut_keys(windows.per_key(q, hw_shape), hw_shape)
    # A column of ones carries the denominator along.
    v = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    q, phi_q = windows.cut(q, hw_shape), windows.cut(phi_q, hw_shape)
    k, v, phi_k = (windows.cut_keys(x, hw_shape) for x in (k, v, phi_k))
    valid = v[0, 0, :, :, -1] > 0
    sums, rest = _exact_sums(q, own, k, v, valid, windows, grid)
    distant = phi_q @ leave_one_out((phi_k * rest.unsqueeze(-1)).mT @ v)
    total = sums[..., -1:] + distant[..., -1:] + DENOMINATOR_EPS
    distant = distant[..., :-1]
    if gate is not None:
        distant = distant * windows.cut(gate, hw_shape)
    return saturate(windows.join((sums[..., :-1] + distant) / total, hw_shape), dtype)


def _exact_sums(
    q: Tensor,
    own: Tensor | None,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    windows: Windows,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Attend from windows (B, H, W, n, d) to themselves and to the salient tokens.

    ``own`` holds a query for each key, None where those are ``q``, and ``valid`` is that of
    :func:`select`.

    Returns:
        tuple[Tensor, Tensor]: The sums over E, (B, H, W, n, e + 1), and which keys are left for L,
        bool, to be broadcast to (B, H, W, n).
    """

    def within(q: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill_(~valid.unsqueeze(-2), -torch.inf)

    near = within(q)
    if not windows.top_k:
        return (near - peak_of(near)).exp_() @ v, valid
    index, real = select(near if own is None else within(own), valid, windows, grid)
    far = _far_scores(q, k, index, real)
    peak = torch.maximum(peak_of(near), peak_of(far))
    sums = (near - peak).exp_() @ v
    weights = (far - peak).exp_().flatten(2, 3)
    sums = sums + (weights @ _take(v, index)).unflatten(2, sums.shape[2:4])
    return sums, valid & ~_chosen(index, real, k)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of windows (B, H, W, n, c) at indices (B, H, S): (B, H, S, c)."""
    index = index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
    return x.flatten(2, 3).gather(2, index)


def _far_scores(q: Tensor, k: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """Scores (B, H, W, n, S) of the salient tokens outside each query's window, else -inf."""
    scores = (q.flatten(2, 3) @ _take(k, index).mT).unflatten(2, q.shape[2:4])
    window = torch.arange(k.shape[2], device=k.device).view(-1, 1, 1)
    inside = (index // k.shape[3])[:, :, None, None] == window
    return scores.masked_fill_(inside | ~real[:, :, None, None], -torch.inf)


def _chosen(index: Tensor, real: Tensor, k: Tensor) -> Tensor:
    """Whether each key (B, H, W, n, d) is salient, bool (B, H, W, n)."""
    counts = k.new_zeros(k.shape[:-1]).flatten(2)
    return counts.scatter_add(2, index, real.to(k.dtype)).unflatten(2, k.shape[2:4]) > 0


def leave_one_out(x: Tensor) -> Tensor:
    """Sum all other windows for each window; nothing is subtracted, so nothing cancels.

    Args:
        x (Tensor): States of windows, shape (B, H, W, ...).

    Returns:
        Tensor: Of the same shape.
    """
    none = torch.zeros_like(x[:, :, :1])
    before = torch.cat((none, x[:, :, :-1]), dim=2).cumsum(dim=2)
    after = torch.cat((none, x.flip(2)[:, :, :-1]), dim=2).cumsum(dim=2).flip(2)
    return before + after


@without_autocast
def exact_pairs(q: Tensor, k: Tensor, hw_shape: tuple[int, int], windows: Windows) -> Tensor:
    """Which keys are exact for which queries, for :func:`one_denominator`; the rest is linear.

    Args:
        q (Tensor): Queries, shape (B, H, N, d).
        k (Tensor): Keys, shape (B, H, M, d).
        hw_shape (tuple[int, int]): Height and width of the map of queries.
        windows (Windows): Their windows.

    Returns:
        Tensor: Bool, shape (B, H, N, M).
    """
    grid, reduced = windows.grid(hw_shape), windows.reduced(hw_shape)

    def window_of(shape: tuple[int, int], side: int) -> Tensor:
        rows, columns = (torch.arange(n, device=q.device) // side for n in shape)
        return (rows[:, None] * grid[1] + columns).flatten()

    of_query = window_of(hw_shape, windows.side * windows.reduction)
    of_key = window_of(reduced, windows.side)
    own = windows.per_key(at_least_float32(q), hw_shape)
    scores = own @ at_least_float32(k).mT * q.shape[-1] ** -0.5
    scores = scores.masked_fill(of_key[:, None] != of_key, -torch.inf)
    odds = _odds_over_even(scores, (of_key[:, None] == of_key).sum(-1))
    salient = torch.zeros_like(odds, dtype=torch.bool)
    for window in of_key.unique():
        inside = of_key == window
        index, _ = most_salient(odds, inside, min(windows.top_k, int(inside.sum())))
        salient = salient.scatter(-1, index, True)
    if windows.most is not None:
        order = of_key.argsort(stable=True)  # in which ties are decided
        count = min(windows.most, len(of_key))
        index, real = most_salient(odds[..., order], salient[..., order], count)
        salient = torch.zeros_like(salient).scatter(-1, order[index], real)
    return salient.unsqueeze(-2) | (of_query[:, None] == of_key)
