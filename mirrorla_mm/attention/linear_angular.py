import math

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import apply_rope
from ..ops.precision import at_least_float32, without_autocast
from ..registry import register_attention
from .base import Attention, to_tokens


@register_attention
class LinearAngularAttention(Attention):
    """The linear part of Castling-ViT's angular kernel.

    The angular kernel ``1 - angle(q, k) / pi`` is ``1/2 + arcsin(cos(q, k)) / pi``; its first-order
    part gives ``out = 1/2 v + 1/pi q/|q| (sum_t k_t/|k_t|^T v_t)``, which is scaled to unit length
    in each head before a convolution of v along the token sequence is added (You et al.,
    "Castling-ViT: Compressing Self-Attention via Switching Towards Linear-Angular Attention During
    Vision Transformer Inference", CVPR 2023). As in the authors' code the constant half
    weighs the token's own value only. The sparse softmax branch they use while training is left
    out: it is quadratic, and at inference it is gone. Where the host reduces k and v, the token's
    own value is interpolated from them.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`. The convolution replaces the host's
    ``lepe_kernel``.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        kernel_size (int): Tokens that the convolution of a head sees. Defaults to 9.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def __init__(self, embed_dims: int, num_heads: int, kernel_size: int = 9, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **{**kwargs, 'lepe_kernel': 0})
        self.dwc = nn.Conv2d(
            num_heads,
            num_heads,
            (kernel_size, 1),
            padding=(kernel_size // 2, 0),
            groups=num_heads,
            bias=False,
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        own = self._every_token(v.transpose(1, 2).flatten(2), hw_shape)
        return linear_angular_attention(q, k, v, own, self.rope_angles(q, hw_shape))

    def enhance(self, out: Tensor, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        local = self.dwc(self._every_token(v, hw_shape))
        return out + local.transpose(1, 2).flatten(2)

    def _every_token(self, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Values (B, M, C), interpolated to the N tokens of the queries, as heads (B, H, N, d)."""
        v = to_tokens(self.full_map(v, hw_shape))
        return v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


@without_autocast
def linear_angular_attention(
    q: Tensor, k: Tensor, v: Tensor, own: Tensor, rope: Tensor | None = None
) -> Tensor:
    """The core of :class:`LinearAngularAttention`, in float32 at least.

    Args:
        q (Tensor): Shape (B, H, N, d).
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        own (Tensor): The value of each query's own token, shape (B, H, N, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (N, d/2).

    Returns:
        Tensor: Vectors of length 1 (0 where all values are 0), shape (B, H, N, d), dtype of ``v``.
    """
    q, k = (F.normalize(at_least_float32(t), dim=-1) for t in (q, k))
    if rope is not None:
        q, k = apply_rope(q, rope), apply_rope(k, rope)
    state = k.transpose(-2, -1) @ at_least_float32(v)
    return F.normalize(0.5 * at_least_float32(own) + q @ state / math.pi, dim=-1).to(v.dtype)
