"""Attention by a pointwise feature map: the family of the fused operator."""

from __future__ import annotations

from torch import Tensor

from ..ops import mirror_attention
from .base import Attention
from .reflection import Reflection


class FeatureMapAttention(Attention):
    """Linear attention ``phi(q) (phi(k)^T v)`` with a pointwise phi, O(N d^2) per head.

    Subclasses name the feature map and say whether the state is rank-augmented.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        reflection (dict, optional): Options of :class:`Reflection`; an empty dict for its defaults.
            It reorients q and k right before the feature map. None for no reflection.
        **kwargs: Options of :class:`Attention`.
    """

    feature_map: str
    rank_augmented: bool

    def __init__(
        self, embed_dims: int, num_heads: int, reflection: dict | None = None, **kwargs
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.reflection = (
            None if reflection is None else Reflection(embed_dims, num_heads, **reflection)
        )

    def projection(self) -> tuple[Tensor, Tensor | None]:
        if self.reflection is None:
            return super().projection()
        return self.reflection.fold(*super().projection())

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        options = dict(
            feature_map=self.feature_map,
            rank_augmented=self.rank_augmented,
            hw_shape=tuple(hw_shape) if self.rope else None,
        )
        if self.reflection is not None and self.feature_map == 'relu':
            # The operator's mirror map is reflection and ReLU in one.
            mirror = self.reflection
            options.update(mirror.options, feature_map='mirror', theta_k=mirror.theta_k)
            return mirror_attention(q, k, v, mirror.theta, **options)
        if self.reflection is not None:
            q, k = self.reflection(q, k)
        return mirror_attention(q, k, v, **options)
