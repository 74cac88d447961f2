"""Operators: tensors in, tensors out. They need torch alone."""

from .backend import BackendError, available_backends, use_backend
from .linear_attention import (
    elu_feature_map,
    linear_attention,
    rank_augmented_attention,
    token_weights,
)
from .mirror_attention import mirror_attention, mirror_attention_reference
from .np_map import householder, np_map
from .reflection import (
    block_reflection,
    block_variance,
    cross_head_reflection,
    mirror_feature_map,
    reflect,
    variance_aware_angle,
)
from .rope import apply_rope, rope_2d
from .saliency import self_saliency, self_saliency_divergence
from .still import one_denominator, still_attention
from .still_causal import still_causal

# After the reference: the backend registered last is preferred.
from . import graph  # noqa: F401  isort: skip
from . import lean  # noqa: F401  isort: skip
from . import fused  # noqa: F401  isort: skip

__all__ = [
    'BackendError',
    'apply_rope',
    'available_backends',
    'block_reflection',
    'block_variance',
    'cross_head_reflection',
    'elu_feature_map',
    'householder',
    'linear_attention',
    'mirror_attention',
    'mirror_attention_reference',
    'mirror_feature_map',
    'np_map',
    'one_denominator',
    'rank_augmented_attention',
    'reflect',
    'rope_2d',
    'self_saliency',
    'self_saliency_divergence',
    'still_attention',
    'still_causal',
    'token_weights',
    'use_backend',
    'variance_aware_angle',
]
