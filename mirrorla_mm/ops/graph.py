"""Linear attention for exported graphs: the backend ``'graph'``.

Runtimes spend their time on what is not a matrix product: transposed heads, slices of channel
pairs, many small steps. So each head is projected by a product of its own, which leaves (B, H, N,
d) in memory; sums read keys and queries as they lie; the output comes channels first, as
convolutions take it; and the rotation of RoPE is a single node, which records no gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, for_graphs, register_backend
from .lean import feature_map
from .linear_attention import NORMALISER_EPS
from .options import Options
from .precision import at_least_float32, saturate, without_autocast
from .reflection import mean_of_pairs, reflect, variance_aware_angle
from .rope import rope_frequencies


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
    dtype = v.dtype
    q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    if options.mirrors:
        assert theta is not None  # the operator has refused it
        modulation = options.lam, options.alpha_max, options.variance_aware
        q = reflect(q, theta, *modulation)
        k = reflect(k, theta if theta_k is None else theta_k, *modulation)
    q, k = feature_map(q, options.feature_map), feature_map(k, options.feature_map)
    # Sums as products: a reduction over the tokens runs on one thread.
    tokens, dim = k.shape[-2:]
    of_queries, of_keys = (x.new_ones(1, 1, 1, x.shape[-2]) for x in (q, k))
    if options.rank_augmented:
        query = of_queries / q.shape[-2] @ q * dim**-0.5
        k = k * (k @ query.transpose(-2, -1)).softmax(dim=-2)
    else:
        k = k / tokens
    # Normalised before they are turned, for what is not turned need not live on: a map less or two.
    # A row of tokens until it divides: some runtimes are slow to add to a column.
    normaliser = (of_keys @ k) @ q.transpose(-2, -1) + NORMALISER_EPS
    normaliser = normaliser.reshape(*q.shape[:-1], 1)
    turn = _turning(options.hw_shape, q) if options.hw_shape else lambda x: x
    # An exporter cancels these transpositions against those of a map's heads.
    state = v.transpose(-2, -1) @ turn(k)
    out = state @ turn(q / normaliser).transpose(-2, -1)
    return saturate(out.transpose(-2, -1), dtype)


def _tables(hw_shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles, (N, d/2): the first half by row, then by column."""
    frequency = rope_frequencies(like.shape[-1], device=like.device, dtype=like.dtype)
    rows, columns = (
        torch.arange(n, device=like.device, dtype=like.dtype)[:, None] * frequency for n in hw_shape
    )
    half = len(frequency)

    def table(function: Callable[[Tensor], Tensor]) -> Tensor:
        # A sum, as few runtimes are quick to repeat or to join.
        by_row, by_column = F.pad(function(rows), (0, half)), F.pad(function(columns), (half, 0))
        return (by_row[:, None] + by_column).flatten(0, 1)

    return table(torch.cos), table(torch.sin)


def _turning(hw_shape: tuple[int, int], like: Tensor) -> Callable[[Tensor], Tensor]:
    """The rotation of heads (B, H, N, d) by the place of each token, see :class:`Rope`."""
    cosine, sine = _tables(hw_shape, like)
    places = torch.arange(like.shape[-2], device=like.device).expand(like.shape[0], -1)
    return lambda x: _rotate(x, cosine, sine, places)


def reflect_by_rotation(
    x: Tensor, theta: Tensor, lam: float, alpha_max: float, variance_aware: bool = True
) -> Tensor:
    """:func:`~mirrorla_mm.ops.reflect` at variance-aware angles as a rotation.

    Args:
        x (Tensor): Heads (B, H, N, d), d even, from :func:`flip`.
        theta (Tensor): See :func:`~mirrorla_mm.ops.reflect`, like what follows.
    """
    assert variance_aware  # else the projection reflects
    tokens, dim = x.shape[-2:]
    average = x.new_full((1, 1, 1, tokens), 1 / tokens)
    centred = x - average @ x
    variance = mean_of_pairs(average @ (centred * centred))
    angle = variance_aware_angle(2 * theta.unsqueeze(-2), variance, lam, 2 * alpha_max)
    # An angle for each head of an image: as places of a sequence, and the tokens as the heads.
    angle = angle.flatten(0, 1)
    turned = _rotate(x.reshape(-1, tokens, 1, dim), angle.cos(), angle.sin())
    return turned.reshape(x.shape)


def flip(x: Tensor) -> Tensor:
    """The other sign for the first of each two channels (..., d)."""
    sign = x.new_tensor([-1.0, 1.0]).repeat(x.shape[-1] // 2)
    return x * sign


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor, places: Tensor | None = None) -> Tensor:
    # Slow to import, and as old as exports: torch 2.9.
    from torch.onnx.ops import rotary_embedding

    return rotary_embedding(x, cosine, sine, places, interleaved=True)


def _why_not(*_: object) -> str | None:
    return None if for_graphs() else 'it is for exported graphs alone'


register_backend('graph', Backend(mirror_attention_graph, _why_not, stepwise=True))
