import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import linear_attention
from ..ops.precision import at_least_float32, without_autocast
from ..registry import register_attention
from .flatten import FLattenAttention


@register_attention
class PolaAttention(FLattenAttention):
    """Polarity-aware linear attention.

    Positive and negative parts of q and k are kept apart: half of the value channels are attended
    by products of equal sign, ``[q+, q-] [k+, k-]^T``, the other half by products of opposite sign,
    ``[q-, q+] [k+, k-]^T``, with ``x+ = relu(x)^p`` and ``x- = relu(-x)^p`` for a learned power
    ``p = 1 + alpha sigmoid(w)`` per channel (Meng et al., "PolaFormer: Polarity-aware Linear
    Attention for Vision Transformers", ICLR 2025). The sum with the convolution of v is
    multiplied by a projected gate, the learned coefficients that stand for the subtraction of
    opposite signs. Scale, position table and convolution are those of
    :class:`~mirrorla_mm.attention.flatten.FLattenAttention`, on whose code it is built.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        alpha (float): Powers lie in (1, 1 + alpha). Defaults to 4.
        kernel_size (int): Size of the depth-wise convolution. Defaults to 5.
        reflection (dict, optional): Options of
            :class:`~mirrorla_mm.attention.reflection.Reflection`, which then reorients q and k
            right before the two ReLUs. None for no reflection.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`, ``gate`` apart.
    """

    def __init__(self, embed_dims: int, num_heads: int, alpha: float = 4, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **{**kwargs, 'gate': True})
        self.alpha = alpha
        self.power = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        scale = self.head_scale()
        q, k = q / scale, self.locate(k, hw_shape) / scale
        if self.reflection is not None:
            q, k = self.reflection.reflect_all(q, k)
        power = 1 + self.alpha * self.power.sigmoid()
        rope = self.rope_angles(q, hw_shape)
        return polarity_attention(q, k, v, power, rope)


@without_autocast
def polarity_attention(
    q: Tensor, k: Tensor, v: Tensor, power: Tensor, rope: Tensor | None = None
) -> Tensor:
    """The core of :class:`PolaAttention`, in float32 at least.

    Args:
        q (Tensor): Shape (B, H, N, d).
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        power (Tensor): Exponents >= 1, shape (H, 1, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (N, d/2).

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``v``.
    """
    (q_pos, q_neg), (k_pos, k_neg) = (
        (F.relu(x) ** power, F.relu(-x) ** power) for x in map(at_least_float32, (q, k))
    )
    if rope is not None:
        rope = torch.cat((rope, rope), dim=-1)
    keys = torch.cat((k_pos, k_neg), dim=-1)
    same_sign, opposite_sign = (
        linear_attention(torch.cat(queries, dim=-1), keys, half, rope)
        for queries, half in zip(((q_pos, q_neg), (q_neg, q_pos)), v.chunk(2, dim=-1))
    )
    return torch.cat((same_sign, opposite_sign), dim=-1)
