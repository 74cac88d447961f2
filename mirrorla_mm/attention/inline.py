import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import apply_rope
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .base import to_tokens
from .state import State, StateAttention


@register_attention
class InLineAttention(StateAttention):
    """Injective linear attention with a local residual.

    Scores are normalised by subtraction instead of division, so that different queries keep
    different maps: ``A = q k^T / (N sqrt(d)) + (1 - q mean(k)^T / sqrt(d)) / N`` whose rows sum to
    1 (Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024,
    Eq. 5, identity kernel). A 3x3 convolution of v, with weights that a small network predicts
    from the mean token, adds local modelling; it replaces the host's ``lepe_kernel``. Scores may be
    negative, so nothing is clipped and no reflection applies.

    As the products sum up, ``out = mean(v) + q C / sqrt(d)`` with the covariance
    ``C = mean(k^T v) - mean(k)^T mean(v)``. Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def __init__(self, embed_dims: int, num_heads: int, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **{**kwargs, 'lepe_kernel': 0})
        self.residual = nn.Sequential(
            nn.Conv1d(embed_dims, embed_dims, 1, groups=num_heads),
            nn.GELU(),
            nn.Conv1d(embed_dims, 9 * embed_dims, 1, groups=num_heads),
        )

    def gather(self, k: Tensor, v: Tensor, place: Tensor | None, tokens: int) -> State:
        return tuple(total / tokens for total in covariance_sums(k, v, place))

    def read(self, q: Tensor, state: State, place: Tensor | None, own: Tensor) -> Tensor:
        return read_covariance(q, *state, place)

    def local(self, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        v = self.full_map(v, hw_shape)
        # One group a picture and channel, as every picture has a convolution of its own.
        weight = self.residual(x.mean(dim=1).unsqueeze(-1)).view(-1, 1, 3, 3)
        local = F.conv2d(v.reshape(1, -1, *hw_shape), weight, padding=1, groups=len(weight))
        return to_tokens(local.view(v.shape))


@without_autocast
def covariance_sums(k: Tensor, v: Tensor, rope: Tensor | None) -> State:
    """Sums over the tokens, in float32 at least.

    Args:
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (M, d/2).

    Returns:
        tuple[Tensor, Tensor, Tensor]: Of ``k^T v``, shape (B, H, d, d), and of k and v, shape
        (B, H, 1, d).
    """
    k, v = at_least_float32(k), at_least_float32(v)
    if rope is not None:
        k = apply_rope(k, rope)
    sums = (t.sum(dim=-2, keepdim=True) for t in (k, v))
    return k.transpose(-2, -1) @ v, *sums


@without_autocast
def read_covariance(
    q: Tensor, products: Tensor, key: Tensor, value: Tensor, rope: Tensor | None
) -> Tensor:
    """``mean(v) + q C / sqrt(d)`` from three means: (B, H, N, d), dtype of ``q``."""
    dtype, q = q.dtype, at_least_float32(q)
    if rope is not None:
        q = apply_rope(q, rope)
    covariance = products - key.transpose(-2, -1) @ value
    return saturate(value + q @ (covariance * q.shape[-1] ** -0.5), dtype)
