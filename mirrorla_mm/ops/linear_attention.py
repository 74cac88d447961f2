"""Non-causal linear attention, plain and rank-augmented: the reference for every faster path.

Both take features that are already non-negative, of shape (B, H, N, d), and compute in float32 at
least.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32, saturate, without_autocast
from .rope import apply_rope

NORMALISER_EPS = 1e-6


def elu_feature_map(x: Tensor) -> Tensor:
    """ELU + 1, the feature map of RALA and of Katharopoulos et al. (2020); positive everywhere."""
    return F.elu(x) + 1


@without_autocast
def token_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much each token adds to RALA's state: softmax over the tokens of ``d^-1/2 mean(q) k^T``.

    Args:
        q (Tensor): Features of the queries, shape (B, H, N, d).
        k (Tensor): Features of the keys, shape (B, H, N, d).

    Returns:
        Tensor: Non-negative and summing to 1 over the tokens, shape (B, H, N), float32 at least.
    """
    q, k = at_least_float32(q), at_least_float32(k)
    scores = (k @ q.mean(dim=-2).unsqueeze(-1)).squeeze(-1)
    return (scores * q.shape[-1] ** -0.5).softmax(dim=-1)


@without_autocast
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Linear attention of non-negative features over all tokens (paper, Eq. 2).

    ``o_t = R(q_t) sum_i w_i R(k_i)^T v_i / (q_t sum_i w_i k_i^T + 1e-6)`` with the rotation R of
    the position embedding in the numerator alone. An all-zero query gives 0.

    Args:
        q (Tensor): Features of the queries, >= 0, shape (B, H, N, d).
        k (Tensor): Features of the keys, >= 0, shape (B, H, M, d).
        v (Tensor): Values, shape (B, H, M, e).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (N, d/2).
        weight (Tensor, optional): Weights of the keys, >= 0, shape (B, H, M). Defaults to 1/M.

    Returns:
        Tensor: Shape (B, H, N, e), dtype of ``v``.
    """
    dtype = v.dtype
    q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    if weight is None:
        weight = k.new_full(k.shape[:-1], 1 / max(k.shape[-2], 1))
    normaliser = q @ (k.transpose(-2, -1) @ weight.unsqueeze(-1)) + NORMALISER_EPS
    if rope is not None:
        q, k = apply_rope(q, rope), apply_rope(k, rope)
    state = k.transpose(-2, -1) @ (v * weight.unsqueeze(-1))
    return saturate(q @ state / normaliser, dtype)


def rank_augmented_attention(q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None = None) -> Tensor:
    """RALA: linear attention whose state weighs the tokens by how well they answer the mean query.

    The published form multiplies the keys by ``N w`` and divides the state by N; this is the same
    with the N cancelled. Arguments and result are those of :func:`linear_attention`.

    Source: Fan et al., "Breaking the Low-Rank Dilemma of Linear Attention", CVPR 2025.
    """
    return linear_attention(q, k, v, rope, token_weights(q, k))
