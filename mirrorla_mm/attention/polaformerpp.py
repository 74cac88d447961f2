import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.lean import LinearState
from ..registry import register_attention
from .linear import LinearAttention, Place

LARGEST = 30.0  # Of the exponential's inputs.


@register_attention
class PolaPPAttention(LinearAttention):
    """Polarity-aware linear attention with an exponential in the place of powers.

    Positive and negative parts are kept apart, as in
    :class:`~mirrorla_mm.attention.polaformer.PolaAttention`: the first half of the value channels
    is attended by products of equal sign, the second by products of opposite sign. Features are
    ``exp(x+) - 1`` of keys and ``exp(s x+) - 1`` of queries, likewise of ``x-``, with a scale s in
    (0, 1) learned per channel, one for each half.

    Source: the published DiT of PolaFormer++ (github.com/ZacharyMeng/PolaFormerPP,
    ``downstream/dit``), whose files load as they are. Unlike the authors'
    code, inputs of the exponential are clamped to 30. Complexity O(N d^2) per head. Shapes are
    those of :class:`~mirrorla_mm.attention.base.Attention`.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    brings = dict(gate=True, lepe_kernel=5)

    def __init__(self, embed_dims: int, num_heads: int, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.s1 = nn.Parameter(torch.zeros(1, num_heads, 1, 2 * self.head_dim))
        self.s2 = nn.Parameter(torch.zeros(1, num_heads, 1, 2 * self.head_dim))

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        """(B, H, n, d) to (B, H, n, 2d) of keys; of queries 2d for each half of the values."""
        # Sums of products of two features stay far below what float32 holds.
        parts = torch.cat((F.relu(x), F.relu(-x)), dim=-1).clamp(max=LARGEST)
        if key:
            return parts.expm1()
        swapped = parts.roll(self.head_dim, dims=-1)
        scaled = (parts * self.s1.sigmoid(), swapped * self.s2.sigmoid())
        return torch.cat(scaled, dim=-1).expm1()

    def read(self, q: Tensor, state: LinearState, place: Place, own: None) -> Tensor:
        halves = zip(q.chunk(2, dim=-1), state.products.chunk(2, dim=-1))
        read = super().read
        return torch.cat(
            [
                read(part, state._replace(products=products), place, own)
                for part, products in halves
            ],
            dim=-1,
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in ('weight', 'bias'):
            if f'{prefix}qkvg.{name}' in state_dict:  # the authors' name
                state_dict[f'{prefix}qkv.{name}'] = state_dict.pop(f'{prefix}qkvg.{name}')
        super()._load_from_state_dict(state_dict, prefix, *args)
