"""STILL on a sequence, chunk by chunk; the formula is that of :mod:`.still`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .precision import at_least_float32, saturate, without_autocast
from .saliency import most_salient, self_attention_odds
from .still import DENOMINATOR_EPS, peak_of


class CausalState(NamedTuple):
    """State that the tokens of a sequence so far leave for the next: see :func:`still_causal`.

    Attributes:
        length (int): Tokens so far.
        k (Tensor): Keys of the tokens that are not routed yet, two chunks at most, (B, H, r, d).
        v (Tensor): Their values and a column of ones, shape (B, H, r, e + 1).
        phi_k (Tensor): Their features, shape (B, H, r, f).
        odds (Tensor): Log-odds of their self-attention, shape (B, H, r).
        salient_k (Tensor): Keys of the salient tokens, shape (B, H, s, d).
        salient_v (Tensor): Their values, shape (B, H, s, e + 1).
        sums (Tensor): ``sum phi(k)^T v`` of all others that are routed, shape (B, H, f, e + 1).
    """

    length: int
    k: Tensor
    v: Tensor
    phi_k: Tensor
    odds: Tensor
    salient_k: Tensor
    salient_v: Tensor
    sums: Tensor


@without_autocast
def still_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi_q: Tensor,
    phi_k: Tensor,
    gate: Tensor | None = None,
    chunk: int = 64,
    top_k: int = 4,
    state: CausalState | None = None,
) -> tuple[Tensor, CausalState]:
    """STILL on a sequence, as published: chunk by chunk, with delayed selection.

    Of a query in chunk c, E are the tokens of chunk c up to itself, all of chunk c - 1 and the
    salient ones of earlier chunks, L the others of earlier chunks. A chunk is routed only when the
    next two have begun. A token's self-attention is that within the last ``chunk`` tokens. Any
    number of tokens may be given at a time, and the result is the same: all at once (prefill) or
    one by one (decoding). As the salient tokens grow with the sequence, so does the cost a token.

    Args:
        q (Tensor): Queries after the position embedding, shape (B, H, n, d).
        k (Tensor): Keys after it, shape (B, H, n, d).
        v (Tensor): Values, shape (B, H, n, e).
        phi_q (Tensor): Features of the queries, >= 0, shape (B, H, n, f).
        phi_k (Tensor): Features of the keys, >= 0, shape (B, H, n, f).
        gate (Tensor, optional): g, shape (B, H, n, e). Defaults to 1.
        chunk (int): Tokens of a chunk. Defaults to 64.
        top_k (int): Salient tokens of a chunk, per head. Defaults to 4.
        state (CausalState, optional): Of the tokens before. Defaults to none.

    Returns:
        tuple[Tensor, CausalState]: Outputs of shape (B, H, n, e), dtype of ``v``, and the state of
        all tokens.

    Raises:
        ValueError: If ``chunk`` < 1 or ``top_k`` < 0.

    Source: Meng et al., "STILL", arXiv 2602.02180; by the paper's formulas where its released code
    differs.
    """
    if chunk < 1 or top_k < 0:
        raise ValueError(f'still_causal needs chunk >= 1 and top_k >= 0, got {chunk} and {top_k}.')
    dtype = v.dtype
    q, k, v, phi_q, phi_k = map(at_least_float32, (q, k, v, phi_q, phi_k))
    q = q * q.shape[-1] ** -0.5
    v = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    if state is None:
        no_k, no_v, no_phi = (x[:, :, :0] for x in (k, v, phi_k))
        state = CausalState(0, no_k, no_v, no_phi, no_k[..., 0], no_k, no_v, no_phi.mT @ no_v)
    gate = v.new_ones(()).expand_as(v[..., :-1]) if gate is None else at_least_float32(gate)
    outputs = [v[:, :, :0, :-1]]
    start = 0
    while start < q.shape[2]:
        stop = min(start + chunk - state.length % chunk, q.shape[2])
        part = (x[:, :, start:stop] for x in (q, k, v, phi_q, phi_k, gate))
        if state.length % chunk == 0 and state.k.shape[2] == 2 * chunk:
            state = _route(state, chunk, min(top_k, chunk))
        out, state = _extend(state, chunk, *part)
        outputs.append(out)
        start = stop
    return saturate(torch.cat(outputs, dim=2), dtype), state


def _extend(
    state: CausalState,
    chunk: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi_q: Tensor,
    phi_k: Tensor,
    gate: Tensor,
) -> tuple[Tensor, CausalState]:
    """Attend from some tokens of one chunk."""
    keys, values = torch.cat((state.k, k), dim=2), torch.cat((state.v, v), dim=2)
    place = torch.arange(keys.shape[2], device=k.device)
    age = place[state.k.shape[2] :, None] - place
    scores = q @ keys.mT
    recent = scores.masked_fill((age <= 0) | (age >= chunk), -torch.inf)
    odds = self_attention_odds(recent, (q * k).sum(dim=-1))

    scores = torch.cat((scores.masked_fill(age < 0, -torch.inf), q @ state.salient_k.mT), dim=-1)
    weights = (scores - peak_of(scores)).exp()
    sums = weights @ torch.cat((values, state.salient_v), dim=2)
    distant = phi_q @ state.sums
    total = sums[..., -1:] + distant[..., -1:] + DENOMINATOR_EPS
    out = (sums[..., :-1] + distant[..., :-1] * gate) / total
    return out, state._replace(
        length=state.length + k.shape[2],
        k=keys,
        v=values,
        phi_k=torch.cat((state.phi_k, phi_k), dim=2),
        odds=torch.cat((state.odds, odds), dim=2),
    )


def _route(state: CausalState, chunk: int, count: int) -> CausalState:
    """Part the oldest chunk into salient tokens, which stay, and others, which are summed up."""
    waiting = state.k, state.v, state.phi_k, state.odds
    k, v, phi_k, odds = (x[:, :, :chunk] for x in waiting)
    k_left, v_left, phi_left, odds_left = (x[:, :, chunk:] for x in waiting)
    index, _ = most_salient(odds, odds.new_ones(chunk, dtype=torch.bool), count)
    others = torch.ones_like(odds).scatter(-1, index, 0.0).unsqueeze(-1)

    def take(x: Tensor) -> Tensor:
        return x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))

    return CausalState(
        state.length,
        k_left,
        v_left,
        phi_left,
        odds_left,
        salient_k=torch.cat((state.salient_k, take(k)), dim=2),
        salient_v=torch.cat((state.salient_v, take(v)), dim=2),
        sums=state.sums + (phi_k * others).mT @ v,
    )
