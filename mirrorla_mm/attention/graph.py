"""Linear attention over a map in the form for exported graphs, see :mod:`mirrorla_mm.ops.graph`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.graph import flip, reflect_by_rotation

if TYPE_CHECKING:
    from .feature_map import FeatureMapAttention

# From so many channels on, reflecting all queries and keys costs less than the covariance of their
# input, whose share of the work grows with the channels and not with the tokens.
WIDE = 256


def attend_map(x: Tensor, norm: nn.LayerNorm, method: FeatureMapAttention) -> Tensor:
    """Normalise a map (B, C, H, W), attend over it and project the output: (B, C, H, W).

    Queries and keys are products of tokens, all else are convolutions, between which a runtime
    keeps its own layout.
    """
    _, channels, *hw_shape = x.shape
    tokens = normalised(x.permute(0, 2, 3, 1), norm.eps)
    weight = weight_of_normalised(norm, *method.projection())
    to_qk, to_v, *to_gate = weight.split(
        (2 * channels, *[channels] * (len(weight) // channels - 2))
    )
    flat = tokens.flatten(1, 2)
    heads = to_qk.t().unflatten(-1, (2 * method.num_heads, -1)).transpose(0, 1)  # (2H, C, d)
    turns = method.varies and channels >= WIDE and method.head_dim % 2 == 0
    if turns:
        heads = flip(heads)
    elif method.varies:
        heads = method.reflection.reflect_heads(heads, covariance(flat)).to(flat.dtype)
    q, k = (flat.unsqueeze(1) @ part for part in heads.split(method.num_heads, dim=-3))
    if turns:
        q, k = method.reflection(q, k, reflect_by_rotation)
    v = to_v @ flat.transpose(1, 2)  # Channels first, as the sums and the convolution take it.
    heads_of_v = v.unflatten(1, (method.num_heads, -1)).transpose(-2, -1)
    out = method.attend_reflected(q, k, heads_of_v, hw_shape)
    out = out.transpose(-2, -1).reshape(x.shape)
    if method.lepe is not None:
        # A convolution adds to its result what is in the runtime's layout: so, by another one.
        out = F.conv2d(out, torch.ones_like(method.lepe.weight[..., :1, :1]), groups=channels)
        out = out + method.lepe(v.unflatten(-1, hw_shape))
    if to_gate:
        out = out * F.conv2d(tokens.permute(0, 3, 1, 2), to_gate[0][..., None, None])
    return F.conv2d(out, method.proj.weight[..., None, None], method.proj.bias)


def normalised(x: Tensor, eps: float) -> Tensor:
    """Tokens (..., C) of variance and mean 1, so that the channels of each sum to C."""
    one = x.new_ones(x.shape[-1])
    return F.layer_norm(x, one.shape, one, one, eps)


def weight_of_normalised(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer (C', C) after a norm as one of :func:`normalised` tokens that needs no bias.

    What all tokens get alike is a multiple of the sum of their channels.
    """
    shift = weight @ (norm.bias - norm.weight)
    if bias is not None:
        shift = shift + bias
    return weight * norm.weight + shift.unsqueeze(-1) / weight.shape[-1]


def covariance(x: Tensor) -> Tensor:
    """Covariance (B, C, C) of :func:`normalised` tokens (B, N, C)."""
    moment = x.transpose(1, 2) @ x / x.shape[1]
    mean = moment.sum(-1, keepdim=True) / x.shape[2]  # As the channels of a token sum to C.
    return moment - mean @ mean.transpose(1, 2)
