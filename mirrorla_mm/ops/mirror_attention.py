"""The whole operator, from projected q, k, v to the output of the heads."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, register_backend, select_backend
from .linear_attention import elu_feature_map, linear_attention, token_weights
from .precision import at_least_float32, saturate, without_autocast
from .reflection import mirror_feature_map
from .rope import rope_2d

FEATURE_MAPS = ('mirror', 'elu', 'relu')


def mirror_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None = None,
    *,
    theta_k: Tensor | None = None,
    feature_map: str = 'mirror',
    rank_augmented: bool = True,
    variance_aware: bool = True,
    lam: float = 1.0,
    alpha_max: float = math.pi / 2,
    hw_shape: tuple[int, int] | None = None,
) -> Tensor:
    """Linear attention with a mirror, ELU+1 or ReLU feature map, by the fastest backend there is.

    Args:
        q (Tensor): Projected queries, cross-head reflection included, shape (B, H, N, d) of any
            strides.
        k (Tensor): Projected keys, shape (B, H, N, d).
        v (Tensor): Values, shape (B, H, N, d).
        theta (Tensor, optional): Base angles in radians, shape (H, d/2); for ``'mirror'`` alone.
        theta_k (Tensor, optional): Base angles of the keys. Defaults to ``theta``.
        feature_map (str): ``'mirror'``, ``'elu'`` or ``'relu'``.
        rank_augmented (bool): Weigh the tokens as RALA does. Defaults to True.
        variance_aware (bool): Modulate the angles by the variance. Defaults to True.
        lam (float): Sensitivity of the modulation (paper, Eq. 14).
        alpha_max (float): Largest modulation in radians (paper, Eq. 14).
        hw_shape (tuple[int, int], optional): Token grid for the 2-D RoPE; none without it.

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``v``.

    Raises:
        ValueError: If the feature map is unknown, ``theta`` is missing or of the wrong shape, or
            ``hw_shape`` does not hold N tokens.
        RuntimeError: If a backend is forced that cannot take these inputs.
    """
    _check_arguments(q, theta, feature_map, hw_shape)
    options = dict(
        theta_k=theta_k,
        feature_map=feature_map,
        rank_augmented=rank_augmented,
        variance_aware=variance_aware,
        lam=lam,
        alpha_max=alpha_max,
        hw_shape=hw_shape,
    )
    return select_backend(q, k, v, theta, **options).run(q, k, v, theta, **options)


@without_autocast
def mirror_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None = None,
    *,
    theta_k: Tensor | None = None,
    feature_map: str = 'mirror',
    rank_augmented: bool = True,
    variance_aware: bool = True,
    lam: float = 1.0,
    alpha_max: float = math.pi / 2,
    hw_shape: tuple[int, int] | None = None,
) -> Tensor:
    """:func:`mirror_attention` composed of the plain operators, for any device and float dtype."""

    def phi(x: Tensor, angle: Tensor | None) -> Tensor:
        if feature_map == 'mirror':
            assert angle is not None  # _check_arguments has refused it
            return mirror_feature_map(
                x, angle, lam=lam, alpha_max=alpha_max, variance_aware=variance_aware
            )
        return elu_feature_map(x) if feature_map == 'elu' else F.relu(x)

    dtype = v.dtype
    q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    q, k = phi(q, theta), phi(k, theta if theta_k is None else theta_k)
    rope = (
        None if hw_shape is None else rope_2d(hw_shape, q.shape[-1], device=q.device, dtype=v.dtype)
    )
    weight = token_weights(q, k) if rank_augmented else None
    return saturate(linear_attention(q, k, v, rope, weight), dtype)


def _check_arguments(
    q: Tensor, theta: Tensor | None, feature_map: str, hw_shape: tuple[int, int] | None
) -> None:
    if feature_map not in FEATURE_MAPS:
        raise ValueError(
            f"Unknown feature map '{feature_map}'; choose from {', '.join(FEATURE_MAPS)}."
        )
    heads, tokens, head_dim = q.shape[1:]
    if feature_map == 'mirror' and (theta is None or theta.shape != (heads, head_dim // 2)):
        given = 'none' if theta is None else tuple(theta.shape)
        raise ValueError(
            f'The mirror map of {heads} heads of {head_dim} channels needs theta of shape '
            f'({heads}, {head_dim // 2}), got {given}.'
        )
    if hw_shape is not None and hw_shape[0] * hw_shape[1] != tokens:
        raise ValueError(f'hw_shape {tuple(hw_shape)} does not hold {tokens} tokens.')


register_backend('torch', Backend(mirror_attention_reference, lambda *args, **kwargs: None))
