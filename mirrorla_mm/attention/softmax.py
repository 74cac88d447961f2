import torch.nn.functional as F
from torch import Tensor

from ..ops.backend import plain_form
from ..ops.rope import Rope
from ..registry import register_attention
from .base import Attention


@register_attention
class SoftmaxAttention(Attention):
    """Scaled dot-product attention (paper, Eq. 1), with RoPE on q and k where the host asks for it.

    Complexity O(N^2 d) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.

    Args:
        *args: Of :class:`~mirrorla_mm.attention.base.Attention`.
        naive (bool): Write the N x N matrix out, as code from before fused kernels does: the same
            numbers for O(N^2) memory. Defaults to False.
        **kwargs: Of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def __init__(self, *args, naive: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.naive = naive

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        if self.rope:
            turn = Rope(hw_shape, self.head_dim, q, plain=plain_form())
            q, k = turn(q), turn(k)
        if self.naive:
            return (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return F.scaled_dot_product_attention(q, k, v)
