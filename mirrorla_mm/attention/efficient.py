import torch
from torch import Tensor

from ..ops import apply_rope
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .state import State, StateAttention


@register_attention
class EfficientAttention(StateAttention):
    """Softmax of the queries over channels and of the keys over tokens.

    ``out = softmax_d(q) (softmax_N(k)^T v)`` (Shen et al., "Efficient Attention: Attention with
    Linear Complexities", WACV 2021, with softmax normalisation). The rows of the map
    ``softmax_d(q) softmax_N(k)^T`` sum to 1, so it needs no normaliser.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def gather(self, k: Tensor, v: Tensor, place: Tensor | None, tokens: int) -> State:
        return softmax_state(k, v, place)

    def merge(self, first: State, second: State) -> State:
        peak = torch.maximum(first[0], second[0])
        parts = [
            (total * shrink, state * shrink.transpose(-2, -1))
            for old, total, state in (first, second)
            for shrink in [(old - peak).exp()]
        ]
        return peak, *super().merge(*parts)

    def read(self, q: Tensor, state: State, place: Tensor | None, own: Tensor) -> Tensor:
        return saturate(read_softmax_state(self.queries(q), *state, place), q.dtype)

    def queries(self, q: Tensor) -> Tensor:
        """What of the queries meets the state: (B, H, N, d) to the same shape."""
        return at_least_float32(q).softmax(dim=-1)

    def strips(self, x: Tensor) -> bool:
        # RoPE turns pairs of channels, which have different normalisers until all is summed.
        return not self.rope and super().strips(x)


@without_autocast
def softmax_state(k: Tensor, v: Tensor, rope: Tensor | None) -> State:
    """What the softmax of the keys over the tokens makes of the values.

    Args:
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (M, d/2).

    Returns:
        tuple[Tensor, Tensor, Tensor]: The largest keys and the sums of the exponentials relative to
        them, both of shape (B, H, 1, d), and ``exp(k)^T v``, relative as well, of shape
        (B, H, d, d), in float32 at least. With ``rope`` the sums are 1 and the last is normalised.
    """
    k = at_least_float32(k)
    peak = k.detach().amax(dim=-2, keepdim=True)
    k = (k - peak).exp()
    total = k.sum(dim=-2, keepdim=True)
    if rope is not None:
        k, total = apply_rope(k / total, rope), torch.ones_like(total)
    return peak, total, k.transpose(-2, -1) @ at_least_float32(v)


@without_autocast
def read_softmax_state(
    features: Tensor, peak: Tensor, total: Tensor, state: Tensor, rope: Tensor | None
) -> Tensor:
    """``features state / total`` of shape (B, H, N, d), in float32 at least."""
    features = at_least_float32(features)
    if rope is not None:
        features = apply_rope(features, rope)
    return features @ (state / total.transpose(-2, -1))
