import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import apply_rope
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .base import Attention, to_tokens


@register_attention
class InLineAttention(Attention):
    """Injective linear attention with a local residual.

    Scores are normalised by subtraction instead of division, so that different queries keep
    different maps: ``A = q k^T / (N sqrt(d)) + (1 - q mean(k)^T / sqrt(d)) / N`` whose rows sum to
    1 (Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024,
    Eq. 5, identity kernel). A 3x3 convolution of v, with weights that a small network predicts
    from the mean token, adds local modelling; it replaces the host's ``lepe_kernel``. Scores may be
    negative, so nothing is clipped and no reflection applies.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def __init__(self, embed_dims: int, num_heads: int, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **{**kwargs, 'lepe_kernel': 0})
        self.residual = nn.Sequential(
            nn.Conv1d(embed_dims, embed_dims, 1, groups=num_heads),
            nn.GELU(),
            nn.Conv1d(embed_dims, 9 * embed_dims, 1, groups=num_heads),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return inline_attention(q, k, v, self.rope_angles(q, hw_shape))

    def enhance(self, out: Tensor, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        v = self.full_map(v, hw_shape)
        # One group a picture and channel, as every picture has a convolution of its own.
        weight = self.residual(x.mean(dim=1).unsqueeze(-1)).view(-1, 1, 3, 3)
        local = F.conv2d(v.reshape(1, -1, *hw_shape), weight, padding=1, groups=len(weight))
        return out + to_tokens(local.view(v.shape))


@without_autocast
def inline_attention(q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None = None) -> Tensor:
    """The core of :class:`InLineAttention`, in float32 at least.

    Args:
        q (Tensor): Shape (B, H, N, d).
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (N, d/2).

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``v``.
    """
    dtype = v.dtype
    q, k, v = map(at_least_float32, (q * q.shape[-1] ** -0.5, k, v))
    if rope is not None:
        q, k = apply_rope(q, rope), apply_rope(k, rope)
    state = k.transpose(-2, -1) @ (v / k.shape[-2])
    missing = 1 - q @ k.mean(dim=-2).unsqueeze(-1)
    return saturate(q @ state + missing * v.mean(dim=-2, keepdim=True), dtype)
