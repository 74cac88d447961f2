from torch import Tensor

from ..ops import apply_rope
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .base import Attention


@register_attention
class EfficientAttention(Attention):
    """Softmax of the queries over channels and of the keys over tokens.

    ``out = softmax_d(q) (softmax_N(k)^T v)`` (Shen et al., "Efficient Attention: Attention with
    Linear Complexities", WACV 2021, with softmax normalisation). The rows of the map
    ``softmax_d(q) softmax_N(k)^T`` sum to 1, so it needs no normaliser.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return efficient_attention(q, k, v, self.rope_angles(q, hw_shape))


@without_autocast
def efficient_attention(q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None = None) -> Tensor:
    """The core of :class:`EfficientAttention`, in float32 at least.

    Args:
        q (Tensor): Shape (B, H, N, d).
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (N, d/2).

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``v``.
    """
    q, k = at_least_float32(q).softmax(dim=-1), at_least_float32(k).softmax(dim=-2)
    if rope is not None:
        q, k = apply_rope(q, rope), apply_rope(k, rope)
    return saturate(q @ (k.transpose(-2, -1) @ at_least_float32(v)), v.dtype)
