import torch
from torch import Tensor

from ..ops import lean
from ..registry import register_attention
from .linear import LinearAttention, Place, State


@register_attention
class EfficientAttention(LinearAttention):
    """Softmax of the queries over channels and of the keys over tokens.

    ``out = softmax_d(q) (softmax_N(k)^T v)`` (Shen et al., "Efficient Attention: Attention with
    Linear Complexities", WACV 2021, with softmax normalisation). The rows of the map
    ``softmax_d(q) softmax_N(k)^T`` sum to 1, so it needs no normaliser.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def sees_parts(self, folds: bool) -> bool:
        # RoPE turns pairs of channels, which have different normalisers until all is summed.
        return not self.rope

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        if key:
            return x
        x = self.queries(x)
        return x if place is None else place(x)

    def queries(self, q: Tensor) -> Tensor:
        """The part of the queries that meets the state: (B, H, N, d) to the same shape."""
        return q.softmax(dim=-1)

    def gather(self, k: Tensor, v: Tensor, place: Place, survey: None) -> State:
        """The largest keys, and relative to them the sums of exp(k) and of exp(k)^T v."""
        peak = k.detach().amax(dim=-2, keepdim=True)
        k = (k - peak).exp()
        total = k.sum(dim=-2, keepdim=True)
        if place is not None:
            k, total = place(k / total), torch.ones_like(total)
        k = k.transpose(-2, -1)
        return peak.transpose(-2, -1), total.transpose(-2, -1), k @ v

    def merge(self, first: State, second: State) -> State:
        return lean.add_relative(first, second)

    def read(self, q: Tensor, state: State, place: Place, own: None) -> Tensor:
        _, total, products = state
        return q @ (products / total)
