"""Algorithm 1 of the paper once more, token by token, in NumPy's float64 or as autograd scalars.

Nothing here is shared with the package: matrices are built and multiplied where the package uses
closed forms, and sums run over Python lists where it uses tensor reductions.
"""

from __future__ import annotations

import numpy as np


def householder(u: np.ndarray) -> np.ndarray:
    """The matrix ``I - 2 u u^T / |u|^2``."""
    u = np.asarray(u, dtype=np.float64)
    return np.eye(len(u)) - 2 * np.outer(u, u) / (u @ u)


def mirror_map(
    x: np.ndarray,
    u_c: np.ndarray | None,
    theta: np.ndarray,
    lam: float = 1.0,
    alpha_max: float = np.pi / 2,
    variance_aware: bool = True,
    eps: float = 1e-6,
) -> np.ndarray:
    """One image: x (N, C), theta (H, d/2) to features (H, N, d)."""
    tokens = [np.asarray(row, dtype=np.float64) for row in x]
    if u_c is not None:
        tokens = [householder(u_c) @ row for row in tokens]
    heads, blocks = theta.shape
    out = np.zeros((heads, len(tokens), 2 * blocks))
    for h in range(heads):
        for m in range(blocks):
            at = (h * blocks + m) * 2
            pairs = [row[at : at + 2] for row in tokens]
            mean = sum(pairs) / len(pairs)
            variance = sum(float((p - mean) @ (p - mean)) for p in pairs) / (2 * len(pairs))
            angle = theta[h, m]
            if variance_aware:
                # exp of a huge argument overflows to inf and the sigmoid to 1, as it should.
                with np.errstate(over='ignore'):
                    angle = angle + alpha_max / (1 + np.exp(-lam / (variance + eps)))
            mirror = householder(np.array([np.cos(angle), np.sin(angle)]))
            for t, pair in enumerate(pairs):
                out[h, t, 2 * m : 2 * m + 2] = np.maximum(mirror @ pair, 0)
    return out


def rope_rotation(row: int, column: int, head_dim: int) -> np.ndarray:
    """The d x d rotation of one token: first half of the channels by row, second by column."""
    quarter = head_dim // 4
    steps = [i / (quarter - 1) if quarter > 1 else 0.0 for i in range(quarter)]
    matrix = np.zeros((head_dim, head_dim))
    for i in range(head_dim // 2):
        position = row if i < quarter else column
        angle = position * 10000.0 ** -steps[i % quarter]
        block = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    return matrix


def quadratic_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    rank_augmented: bool,
    hw_shape: tuple[int, int] | None = None,
) -> np.ndarray:
    """One head with its N x N matrix written out: features q, k (N, d) and v (N, e) to (N, e)."""
    n, d = q.shape
    weight = np.full(n, 1 / n)
    if rank_augmented:
        scores = k @ q.mean(0) / np.sqrt(d)
        weight = np.exp(scores - scores.max())
        weight /= weight.sum()
    turned_q, turned_k = q, k
    if hw_shape is not None:
        rotations = [rope_rotation(t // hw_shape[1], t % hw_shape[1], d) for t in range(n)]
        turned_q = np.stack([r @ row for r, row in zip(rotations, q)])
        turned_k = np.stack([r @ row for r, row in zip(rotations, k)])
    numerator = (turned_q @ turned_k.T) * weight
    denominator = ((q @ k.T) * weight).sum(1, keepdims=True) + 1e-6
    return (numerator / denominator) @ v
