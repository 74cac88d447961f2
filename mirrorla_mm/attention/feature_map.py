"""Attention by a pointwise feature map: the family of the fused operator."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import lean
from ..ops.backend import Backend, select_backend
from ..ops.options import Options
from .linear import LinearAttention, Place, Plan
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

    def projection(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().projection()
        return (weight, bias) if self.reflection is None else self.reflection.fold(weight, bias)

    def fold_for_inference(self) -> None:
        """Fold into the projection what is the same in all images, for good."""
        if self.reflection is None:
            return
        weight, bias = self.projection()
        self.qkv.weight.data = weight.detach()
        if bias is not None:
            self.qkv.bias.data = bias.detach()
        self.reflection = self.reflection.remainder()

    @property
    def _varies(self) -> bool:
        """Whether reflections differ from image to image, so that :meth:`projection` lacks them."""
        return self.reflection is not None and self.reflection.variance_aware

    def folds(self, x: Tensor, backend: Backend) -> bool:
        """Whether the projection reflects.

        On a CPU that pays where the covariance of the input, N C^2 + 2 C^3 multiplications, costs
        less than some ten passes over N C numbers. The fused operator on a GPU reflects for free.
        """
        return (
            self._varies
            and backend.strips
            and self.sr is None
            and x.device.type == 'cpu'
            and x.shape[1] >= 8 * self.embed_dims
        )

    def project_folded(self, x: Tensor) -> tuple[Tensor, ...]:
        weight, bias = self.projection()
        folded, shift = self._fold_angles(weight, bias, x)
        q, k = torch.baddbmm(shift, x, folded).split(self.embed_dims, dim=-1)
        weights = weight.split(self.embed_dims)[2:]
        biases = [None] * len(weights) if bias is None else bias.split(self.embed_dims)[2:]
        return q, k, *(F.linear(x, *layer) for layer in zip(weights, biases))

    def layers(self, x: Tensor, folds: bool) -> list[tuple[Tensor, Tensor | None]]:
        layers = super().layers(x, folds)
        if folds:
            folded, shift = self._fold_angles(*self.projection(), x)
            layers[:2] = zip(*(t[0].split(self.embed_dims, dim=-1) for t in (folded, shift)))
        return layers

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int], plan: Plan | None = None
    ) -> Tensor:
        theta, theta_k, options = self.operator(hw_shape)
        if plan is None:
            plan = Plan(select_backend(q, k, v, theta, theta_k, options))
        if plan.folds:
            theta, theta_k = None, None
            options = options._replace(feature_map=self.feature_map)
        elif self._varies and theta is None:
            q, k = self.reflection(q, k)
        return plan.backend.run(q, k, v, theta, theta_k, options)

    def operator(self, hw_shape: tuple[int, int]) -> tuple[Tensor | None, Tensor | None, Options]:
        options = Options(
            self.feature_map,
            self.rank_augmented,
            hw_shape=tuple(hw_shape) if self.rope else None,
        )
        if not self._varies or self.feature_map != 'relu':
            return None, None, options
        # The operator's mirror map is reflection and ReLU in one.
        mirror = self.reflection
        options = options._replace(feature_map='mirror', **mirror.options)
        return mirror.theta, mirror.theta_k, options

    # The steps, for strips:

    def sees_parts(self, folds: bool) -> bool:
        return folds or not self._varies

    @property
    def surveys(self) -> bool:
        return self.rank_augmented

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        return lean.feature_map(x, self.feature_map, overwrite=True)

    def survey(self, queries: Iterable[Tensor]) -> Tensor:
        return lean.survey(queries)

    def _fold_angles(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        qk = slice(2 * self.embed_dims)
        return self.reflection.fold_angles(weight[qk], None if bias is None else bias[qk], x)
