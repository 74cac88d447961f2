import torch.nn.functional as F
from torch import Tensor

from ..ops import apply_rope
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .base import Attention


@register_attention
class HydraAttention(Attention):
    """Attention with as many heads as channels and the cosine similarity as kernel.

    ``out = q/|q| * sum_t k_t/|k_t| * v_t``, channel by channel, with norms over all C channels
    (Bolya et al., "Hydra Attention: Efficient Attention with Many Heads", ECCV Workshops 2022). In
    the quadratic form channel c has the map ``A_c[t, s] = q_tc k_sc`` of the unit vectors. The
    result does not depend on ``num_heads`` unless a host turns the heads by RoPE.

    Complexity O(N C) in all. Shapes are those of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return hydra_attention(q, k, v, self.rope_angles(q, hw_shape))


@without_autocast
def hydra_attention(q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None = None) -> Tensor:
    """The core of :class:`HydraAttention`, in float32 at least.

    Args:
        q (Tensor): Shape (B, H, N, d).
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (N, d/2).

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``v``.
    """
    q, k = (F.normalize(at_least_float32(t), dim=(1, 3)) for t in (q, k))
    if rope is not None:
        q, k = apply_rope(q, rope), apply_rope(k, rope)
    return saturate(q * (k * at_least_float32(v)).sum(dim=-2, keepdim=True), v.dtype)
