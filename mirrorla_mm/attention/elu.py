from ..registry import register_attention
from .feature_map import FeatureMapAttention


@register_attention
class ELUAttention(FeatureMapAttention):
    """Linear attention with ``phi(x) = elu(x) + 1``, without rank augmentation.

    Source: Katharopoulos et al., "Transformers are RNNs", ICML 2020. Complexity O(N d^2) per head.
    Shapes are those of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    feature_map = 'elu'
    rank_augmented = False
