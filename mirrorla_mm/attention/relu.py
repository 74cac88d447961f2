from ..registry import register_attention
from .feature_map import FeatureMapAttention


@register_attention
class ReLUAttention(FeatureMapAttention):
    """Linear attention with ``phi(x) = relu(x)`` (paper, Eq. 2 and the row "ReLU+LA" of Tab. 7).

    With ``reflection=dict()`` it is the row "ReLU+MirrorLA". Complexity O(N d^2) per head. Shapes
    are those of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    feature_map = 'relu'
    rank_augmented = False
