"""Linear attention in few passes over the tokens, for any device: the backend ``'lean'``.

The sums of the reference in another order, and in steps that may see the tokens part by part: keys
and values are gathered to a state, states of two parts merge, and queries read the state of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, Heads, register_backend, symbolic
from .linear_attention import NORMALISER_EPS
from .options import Options
from .precision import at_least_float32, saturate, without_autocast
from .products import PLAIN, Products
from .reflection import block_reflection, block_variance, variance_aware_angle
from .rope import Rope, as_complex


class LinearState(NamedTuple):
    """State of some keys and values, with weights w_t relative to ``peak``.

    Attributes:
        peak (Tensor): The largest score, shape (B, H, 1, 1), or 0 where all tokens count alike.
        total (Tensor): Sum of w_t, shape (B, H, 1, 1) or ().
        key (Tensor): Sum of w_t k_t, shape (B, H, 1, d).
        products (Tensor): Sum of w_t R(k_t)^T v_t with the position embedding R, (B, H, d, e).
    """

    peak: Tensor
    total: Tensor
    key: Tensor
    products: Tensor


def feature_map(x: Tensor, name: str, overwrite: bool = False) -> Tensor:
    """ELU + 1 for ``'elu'``, else the ReLU, which is all that a mirror map needs once reflected."""
    if name == 'elu':
        return F.elu(x, inplace=overwrite).add_(1)
    return F.relu(x, inplace=overwrite)


def reflect(
    x: Tensor, theta: Tensor, lam: float, alpha_max: float, variance_aware: bool = True
) -> Tensor:
    """:func:`~mirrorla_mm.ops.reflect` of complex pairs z: ``-exp(2i Theta) conj(z)``."""
    angle = at_least_float32(theta)
    if variance_aware:
        angle = variance_aware_angle(theta, block_variance(x), lam, alpha_max)
    if x.shape[-1] % 2:
        return block_reflection(x, angle).to(x.dtype)
    factor = torch.polar(-torch.ones_like(angle), -2 * angle).unsqueeze(-2)
    return torch.view_as_real(torch.conj_physical(as_complex(x) * factor)).flatten(-2).to(x.dtype)


def survey(queries: Iterable[Tensor]) -> Tensor:
    """The query of RALA's token weights: ``d^-1/2 mean(q)`` of all features, given part by part.

    Args:
        queries (Iterable[Tensor]): Each of shape (B, H, n, d).

    Returns:
        Tensor: Shape (B, H, 1, d).
    """
    sums, tokens = zip(*((q.sum(dim=-2, keepdim=True), q.shape[-2]) for q in queries))
    return torch.stack(sums).sum(0) * (sums[0].shape[-1] ** -0.5 / sum(tokens))


def gather(
    k: Tensor,
    v: Tensor,
    rope: Rope | None,
    query: Tensor | None = None,
    products: Products = PLAIN,
) -> LinearState:
    """Sum some keys and values.

    Args:
        k (Tensor): Features of keys, >= 0, shape (B, H, n, d), float32 or float64 like all here.
        v (Tensor): Values, shape (B, H, n, e).
        rope (Rope, optional): Position embedding of these tokens, for the numerator alone.
        query (Tensor, optional): Tokens weigh exp(k_t query), shape (B, H, 1, d); else alike.
        products (Products): How to multiply matrices. Defaults to torch's own way.
    """
    turned, v = k if rope is None else rope(k), v.to(k.dtype)
    if query is None:
        total = k.new_full((), k.shape[-2])
        key = k.sum(dim=-2, keepdim=True)
        return LinearState(k.new_zeros(()), total, key, products.gather(turned, v))
    scores = products.read(k, query.transpose(-2, -1))
    peak = scores.detach().amax(dim=-2, keepdim=True)
    weight = (scores - peak).exp_()
    total, key = weight.sum(dim=-2, keepdim=True), products.gather(weight, k)
    return LinearState(peak, total, key, products.gather(turned, v * weight))


def merge(first: LinearState, second: LinearState) -> LinearState:
    """The state of two parts of the tokens together."""
    return LinearState(*add_relative(first, second))


def add_relative(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add states that are a peak each, and sums of what is relative to ``exp(peak)``."""
    peak = torch.maximum(first[0], second[0])
    shrink = [torch.exp(state[0] - peak) for state in (first, second)]
    return peak, *(a * shrink[0] + b * shrink[1] for a, b in zip(first[1:], second[1:]))


def read_in(state: LinearState, dtype: torch.dtype) -> LinearState:
    """The state to read from in this dtype; normalisers stay as they are."""
    return state._replace(products=state.products.to(dtype))


def read(q: Tensor, state: LinearState, rope: Rope | None, products: Products = PLAIN) -> Tensor:
    """``R(q) S / (q m + 1e-6)`` of features of queries (B, H, n, d): shape (B, H, n, e).

    The numerator is computed in the dtype of ``S``, see :func:`read_in`.
    With m keys in the state, each normalises its share of the e columns; where m does not divide e,
    the last share is the smaller one.
    """
    key = (state.key / state.total).transpose(-2, -1)
    normaliser = products.read(q, key) + NORMALISER_EPS
    turned = q if rope is None else rope(q)
    values = (state.products / state.total).to(state.products.dtype)
    out = products.read(turned.to(values.dtype), values)
    keys, columns = normaliser.shape[-1], out.shape[-1]
    if keys > 1:
        normaliser = normaliser.repeat_interleave(-(-columns // keys), dim=-1)[..., :columns]
    divide = Tensor.div if torch.is_grad_enabled() else Tensor.div_
    return divide(out, normaliser)


@without_autocast
def mirror_attention_lean(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options,
) -> Tensor:
    """:func:`~mirrorla_mm.ops.mirror_attention`."""
    dtype = v.dtype
    q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    if len(q) > 1:  # Each batched product would copy heads that lie between those of others.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if options.mirrors:
        assert theta is not None  # the operator has refused it
        modulation = options.lam, options.alpha_max, options.variance_aware
        q = reflect(q, theta, *modulation)
        k = reflect(k, theta if theta_k is None else theta_k, *modulation)
    q, k = feature_map(q, options.feature_map), feature_map(k, options.feature_map)
    rope = Rope(options.hw_shape, q.shape[-1], q) if options.hw_shape else None
    query = survey([q]) if options.rank_augmented else None
    return saturate(read(q, gather(k, v, rope, query), rope), dtype)


def _why_not(q: Tensor | Heads, k: Tensor | Heads, *_: object) -> str | None:
    if symbolic():
        return 'a compiler or exporter fuses the plain form itself'
    if q.shape[-2] == 0 or k.shape[-2] == 0:
        return 'there are no tokens'
    return None


register_backend('lean', Backend(mirror_attention_lean, _why_not, stepwise=True, strips=True))
