import torch.nn.functional as F
from torch import Tensor

from ..ops.rotation import rotate
from ..registry import register_attention
from .base import Attention


@register_attention
class SoftmaxAttention(Attention):
    """Scaled dot-product attention (paper, Eq. 1), with RoPE on q and k where the host asks for it.

    Complexity O(N^2 d) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        if self.rope:
            q, k = rotate(q, hw_shape), rotate(k, hw_shape)
        return F.scaled_dot_product_attention(q, k, v)
