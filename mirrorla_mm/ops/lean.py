"""The operator in fewer passes over the tokens, for any device: the backend ``'lean'``.

The same sums as the reference in another order: RoPE and block reflection are one complex
multiplication each, and what weighs or normalises tokens is a product with a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import Backend, register_backend
from .features import features
from .linear_attention import NORMALISER_EPS, token_weights
from .options import Options
from .precision import at_least_float32, saturate, without_autocast
from .reflection import variance_aware_angle
from .rotation import rotate, symbolic


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
    dtype, tokens = v.dtype, k.shape[-2]
    q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    q = features(q, theta, options, _reflect)
    k = features(k, theta if theta_k is None else theta_k, options, _reflect)
    if options.rank_augmented:
        weight = token_weights(q, k)
        v = v * weight.unsqueeze(-1)
    else:
        weight = k.new_full(k.shape[:-1], 1 / tokens)
        v = v / tokens
    key = (weight.unsqueeze(-2) @ k).transpose(-2, -1)
    scale = (q @ key + NORMALISER_EPS).reciprocal()
    if options.hw_shape:
        q, k = rotate(q, options.hw_shape), rotate(k, options.hw_shape)
    return saturate(q @ (k.transpose(-2, -1) @ v) * scale, dtype)


def _reflect(
    x: Tensor, theta: Tensor, lam: float, alpha_max: float, variance_aware: bool
) -> Tensor:
    """:func:`~mirrorla_mm.ops.reflect` of complex pairs z: ``-exp(2i Theta) conj(z)``."""
    angle = at_least_float32(theta)
    if variance_aware:
        centred = x - x.mean(dim=-2, keepdim=True)
        variance = centred.square().mean(dim=-2).unflatten(-1, (-1, 2)).mean(-1)
        angle = variance_aware_angle(theta, variance, lam, alpha_max)
    factor = torch.polar(-torch.ones_like(angle), -2 * angle).unsqueeze(-2)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(torch.conj_physical(pairs * factor)).flatten(-2)


def _why_not(q: Tensor, k: Tensor, *_: object) -> str | None:
    if symbolic():
        return 'a compiler or exporter fuses the plain form itself'
    if not (_has_pairs(q) and _has_pairs(k)):
        return 'q and k need pairs of adjacent channels that lie side by side in memory'
    if q.shape[-2] == 0:
        return 'there are no tokens'
    return None


def _has_pairs(x: Tensor) -> bool:
    """Whether ``torch.view_as_complex`` can read pairs of channels in place."""
    places = (*x.stride()[:-1], x.storage_offset(), x.shape[-1])
    return x.stride(-1) == 1 and not any(place % 2 for place in places)


register_backend('lean', Backend(mirror_attention_lean, _why_not))
