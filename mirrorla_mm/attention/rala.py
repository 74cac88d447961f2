from ..registry import register_attention
from .feature_map import FeatureMapAttention


@register_attention
class RALA(FeatureMapAttention):
    """Rank-augmented linear attention with ``phi(x) = elu(x) + 1``.

    Source: Fan et al., "Breaking the Low-Rank Dilemma of Linear Attention", CVPR 2025. Complexity
    O(N d^2) per head. Shapes are those of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    feature_map = 'elu'
    rank_augmented = True
