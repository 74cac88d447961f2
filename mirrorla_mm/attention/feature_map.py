"""Attention by a pointwise feature map: the family of the fused operator."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import lean
from ..ops.backend import Backend, for_graphs, select_backend
from ..ops.options import Options
from .graph import attend_map
from .linear import Layer, LinearAttention, Operator, Place, Plan
from .reflection import Reflection


class FeatureMapAttention(LinearAttention):
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

    def on_map(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        if self.sr is not None or self.out_norm is not None:
            return super().on_map(x, norm)
        return attend_map(x, norm, self)

    def attend_reflected(
        self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]
    ) -> Tensor:
        """Attend from heads (B, H, N, d) that are reflected already."""
        operator = self.operator(hw_shape, folds=True)
        return select_backend(q, k, v, *operator).run(q, k, v, *operator)

    def projection(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().projection()
        return (weight, bias) if self.reflection is None else self.reflection.fold(weight, bias)

    def fold_for_inference(self) -> None:
        """Fold into the projection what is the same in all images, for good."""
        super().fold_for_inference()
        if self.reflection is None:
            return
        weight, bias = self.projection()
        self.qkv.weight.data = weight.detach()
        if bias is not None:
            self.qkv.bias.data = bias.detach()
        self.reflection = self.reflection.remainder()

    @property
    def varies(self) -> bool:
        """Whether reflections differ from image to image, so that :meth:`projection` lacks them."""
        return self.reflection is not None and self.reflection.variance_aware

    def folds(self, x: Tensor, backend: Backend) -> bool:
        """Whether the projection reflects.

        On a CPU that pays where the covariance of the input, N C^2 + 2 C^3 multiplications, costs
        less than some ten passes over N C numbers. The fused operator on a GPU reflects for free.
        """
        if for_graphs():  # At any size, as one graph has to serve all.
            return self.varies and self.sr is None
        return (
            self.varies
            and backend.strips
            and self.sr is None
            and x.device.type == 'cpu'
            and x.shape[1] >= 8 * self.embed_dims
        )

    def layers(self, x: Tensor, folds: bool) -> list[Layer]:
        weight, bias = self.projection()
        layers = self.split_layers(weight.t(), bias)
        if folds:
            layers[:2] = self.split_layers(
                *self.reflection.fold_angles(weight, bias, x, self.products)
            )
        return layers

    def _attend_projected(
        self, x: Tensor, hw_shape: tuple[int, int], plan: Plan
    ) -> tuple[Tensor, ...]:
        whole = plan.backend.packed is not None and self.sr is None and not plan.folds
        if not whole or self._reflects_first(plan):
            return super()._attend_projected(x, hw_shape, plan)
        packed = F.linear(x, *self.projection())
        packed = packed.unflatten(-1, (-1, self.num_heads, self.head_dim))
        return plan.backend.packed(packed, *plan.operator)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int], plan: Plan
    ) -> Tensor:
        if self._reflects_first(plan):
            q, k = self.reflection(q, k)
        return plan.backend.run(q, k, v, *plan.operator)

    def _reflects_first(self, plan: Plan) -> bool:
        """Whether neither the projection nor the operator reflects q and k."""
        return self.varies and not plan.folds and not plan.operator[-1].mirrors

    def operator(self, hw_shape: tuple[int, int], folds: bool = False) -> Operator:
        options = Options(
            self.feature_map,
            self.rank_augmented,
            hw_shape=tuple(hw_shape) if self.rope else None,
        )
        if folds or not self.varies or self.feature_map != 'relu':
            return None, None, options
        # The operator's mirror map is reflection and ReLU in one.
        mirror = self.reflection
        options = options._replace(feature_map='mirror', **mirror.options)
        return mirror.theta, mirror.theta_k, options

    # The steps, for strips:

    def sees_parts(self, folds: bool) -> bool:
        return folds or not self.varies

    @property
    def surveys(self) -> bool:
        return self.rank_augmented

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        return lean.feature_map(x, self.feature_map, overwrite=True)

    def survey(self, queries: Iterable[Tensor]) -> Tensor:
        return lean.survey(queries)
