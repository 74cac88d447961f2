from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.lean import LinearState
from ..registry import register_attention
from .flatten import FLattenAttention
from .linear import Place


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
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    brings = dict(lepe_kernel=0, gate=True)

    def __init__(self, embed_dims: int, num_heads: int, alpha: float = 4, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.alpha = alpha
        self.power = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))

    def feature_map(self, x: Tensor, key: bool) -> Tensor:
        """Powers of the positive and of the negative parts, (B, H, N, 2d)."""
        x = x / self.head_scale()
        if self.reflection is not None:
            x = self.reflection.reflect_all(x, key)
        return signed_powers(x, 1 + self.alpha * self.power.sigmoid())

    def read(self, q: Tensor, state: LinearState, place: Place, own: None) -> Tensor:
        # Queries of the opposite sign see the keys' halves exchanged.
        same, opposite = state.products.tensor_split(2, dim=-1)
        products = torch.cat((same, opposite.roll(self.head_dim, dims=-2)), dim=-1)
        key = torch.cat((state.key, state.key.roll(self.head_dim, dims=-1)), dim=-2)
        return super().read(q, state._replace(products=products, key=key), place, own)


def signed_powers(x: Tensor, power: Tensor | float) -> Tensor:
    """``[relu(x)^p, relu(-x)^p]``, by one power of each number.

    Args:
        x (Tensor): Queries or keys, shape (B, H, N, d).
        power (Tensor | float): Exponents >= 1, of any shape that broadcasts to that of x.

    Returns:
        Tensor: >= 0, shape (B, H, N, 2d).
    """
    powers = x.abs() ** power
    positive = powers * x.detach().sign().relu()
    return torch.cat((positive, powers - positive), dim=-1)
