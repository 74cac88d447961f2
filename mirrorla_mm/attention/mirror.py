from ..registry import register_attention
from .feature_map import FeatureMapAttention


@register_attention
class MirrorAttention(FeatureMapAttention):
    """Rank-augmented linear attention with the mirror map (paper, Alg. 1, in RALA's place).

    ``phi(x) = relu(H(Theta) H_c x)``. Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H; where C / H is odd, the last channel of a head is not reflected by
            blocks.
        reflection (dict): Options of :class:`~mirrorla_mm.attention.reflection.Reflection`, among
            them the switches of Tab. 8. Defaults to its defaults.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    feature_map = 'relu'
    rank_augmented = True

    def __init__(
        self, embed_dims: int, num_heads: int, reflection: dict | None = None, **kwargs
    ) -> None:
        super().__init__(embed_dims, num_heads, reflection=reflection or {}, **kwargs)
