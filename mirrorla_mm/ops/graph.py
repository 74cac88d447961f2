"""Linear attention for exported graphs: the backend ``'graph'``.

Runtimes spend their time on what is not a matrix product: transposed heads, slices of channel
pairs, many small steps. So tokens stay (B, N, C) with all heads side by side. Products span all
heads and a mask keeps each to itself, and the turn of RoPE is a product with a constant matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import Backend, for_graphs, register_backend
from .lean import feature_map
from .linear_attention import NORMALISER_EPS
from .options import Options
from .precision import at_least_float32, saturate, without_autocast
from .reflection import reflect
from .rope import rope_2d


@without_autocast
def mirror_attention_graph(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options,
) -> Tensor:
    """:func:`~mirrorla_mm.ops.mirror_attention`."""
    dtype, heads, dim = v.dtype, q.shape[1], q.shape[-1]
    q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    if options.mirrors:
        assert theta is not None  # the operator has refused it
        modulation = options.lam, options.alpha_max, options.variance_aware
        q = reflect(q, theta, *modulation)
        k = reflect(k, theta if theta_k is None else theta_k, *modulation)
    # Back to tokens: an exporter cancels this transposition against that which split the heads.
    q, k, v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
    q, k = feature_map(q, options.feature_map), feature_map(k, options.feature_map)
    own = torch.eye(heads, dtype=q.dtype, device=q.device).repeat_interleave(dim, dim=0)  # (C, H)
    if options.rank_augmented:
        query = q.mean(dim=1).unsqueeze(-1) * dim**-0.5
        weight = (k @ (query * own)).softmax(dim=1)
    else:
        weight = torch.ones_like(k[..., :heads]) / k.shape[1]
    key = (weight.transpose(1, 2) @ k).transpose(1, 2) * own
    normaliser = q @ key + NORMALISER_EPS
    if options.hw_shape:
        tables = _tables(options.hw_shape, heads, q, dim)
        q, k = _turn(q, *tables), _turn(k, *tables)
    v = (v.unflatten(-1, (heads, -1)) * weight.unsqueeze(-1)).flatten(2)
    state = (k.transpose(1, 2) @ v) * (own @ own.t())
    out = (q @ state).unflatten(-1, (heads, -1)) / normaliser.unsqueeze(-1)
    return saturate(out.transpose(1, 2), dtype)


def _tables(
    hw_shape: tuple[int, int], heads: int, like: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and sine of each token's angles, (N, C), and the quarter turn of all pairs (C, C)."""
    angle = rope_2d(hw_shape, dim, device=like.device, dtype=like.dtype)
    angle = angle.repeat_interleave(2, dim=-1).repeat(1, heads)
    turn = like.new_tensor([[0.0, 1.0], [-1.0, 0.0]])
    pairs = torch.eye(heads * dim // 2, dtype=like.dtype, device=like.device)
    # Not block_diag: it is three nodes for each pair, and folding those took minutes.
    return angle.cos(), angle.sin(), torch.kron(pairs, turn)


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, quarter: Tensor) -> Tensor:
    return x * cosine + (x @ quarter) * sine


def _why_not(*_: object) -> str | None:
    return None if for_graphs() else 'it is for exported graphs alone'


register_backend('graph', Backend(mirror_attention_graph, _why_not, stepwise=True))
