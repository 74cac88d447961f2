"""The whole operator, from projected q, k, v to the output of the heads."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, register_backend, select_backend
from .linear_attention import elu_feature_map, linear_attention, token_weights
from .maps import check_map
from .options import FEATURE_MAPS, Options
from .precision import at_least_float32, saturate, without_autocast
from .reflection import reflect
from .rope import rope_2d


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
        theta (Tensor, optional): Base angles in radians, shape (H, d//2); for ``'mirror'`` alone.
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
        ValueError: If the feature map is unknown, ``theta`` is missing, angles have the wrong
            shape, or ``hw_shape`` does not hold N tokens.
        BackendError: If a backend is forced that cannot take these inputs.
    """
    options = Options(feature_map, rank_augmented, variance_aware, lam, alpha_max, hw_shape)
    _check_arguments(q, theta, theta_k, options)
    arguments = (q, k, v, theta, theta_k, options)
    return select_backend(*arguments).run(*arguments)


def mirror_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None = None,
    *,
    theta_k: Tensor | None = None,
    **options,
) -> Tensor:
    """:func:`mirror_attention` composed of the plain operators, for any device and float dtype."""
    return _reference(q, k, v, theta, theta_k, Options(**options))


@without_autocast
def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options,
) -> Tensor:
    dtype = v.dtype
    q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    q = _features(q, theta, options)
    k = _features(k, theta if theta_k is None else theta_k, options)
    rope = None
    if options.hw_shape:
        rope = rope_2d(options.hw_shape, q.shape[-1], device=q.device, dtype=v.dtype)
    weight = token_weights(q, k) if options.rank_augmented else None
    return saturate(linear_attention(q, k, v, rope, weight), dtype)


def _features(x: Tensor, theta: Tensor | None, options: Options) -> Tensor:
    if options.feature_map == 'elu':
        return elu_feature_map(x)
    if options.mirrors:
        assert theta is not None  # the operator has refused it
        x = reflect(x, theta, options.lam, options.alpha_max, options.variance_aware)
    return F.relu(x)


def _check_arguments(
    q: Tensor, theta: Tensor | None, theta_k: Tensor | None, options: Options
) -> None:
    if options.feature_map not in FEATURE_MAPS:
        raise ValueError(
            f"Unknown feature map '{options.feature_map}'; choose from {', '.join(FEATURE_MAPS)}."
        )
    heads, tokens, head_dim = q.shape[1:]
    if options.mirrors:
        _check_angles(theta, 'theta', heads, head_dim)
        if theta_k is not None:
            _check_angles(theta_k, 'theta_k', heads, head_dim)
    if options.hw_shape:
        check_map(options.hw_shape, tokens)


def _check_angles(angles: Tensor | None, name: str, heads: int, head_dim: int) -> None:
    if angles is None or angles.shape != (heads, head_dim // 2):
        given = 'none' if angles is None else tuple(angles.shape)
        raise ValueError(
            f'The mirror map of {heads} heads of {head_dim} channels needs {name} of shape '
            f'({heads}, {head_dim // 2}), got {given}.'
        )


register_backend('torch', Backend(_reference, lambda *_: None, stepwise=True))
