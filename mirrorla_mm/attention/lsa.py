from torch import Tensor

from ..registry import register_attention
from .efficient import EfficientAttention


@register_attention
class LSA(EfficientAttention):
    """Linear self-attention of DCTLSA: softmax of the keys over the tokens, none of the queries.

    ``out = d^-1/2 q (softmax_N(k)^T v)``. The queries keep their sign and size, and there is no
    normaliser.

    Source: Zeng et al., "Densely Connected Transformer With Linear Self-Attention for Lightweight
    Image Super-Resolution", IEEE Trans. Instrum. Meas. 2023. Complexity O(N d^2) per head. Shapes
    are those of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def queries(self, q: Tensor) -> Tensor:
        return q * self.head_dim**-0.5
