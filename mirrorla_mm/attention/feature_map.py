"""Attention by a pointwise feature map: the family of the fused operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import mirror_attention
from ..ops.backend import forced_backend
from ..ops.rotation import rotation, symbolic
from ..ops.streaming import (
    StreamedState,
    conv_rows,
    input_rows,
    row_strips,
    streams,
)
from .base import Attention, to_map, to_tokens
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

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        plain = self.sr is None and self.out_norm is None and forced_backend() in (None, 'lean')
        if plain and streams(x) and (self.reflection is None or self._folds(x)):
            return self._stream(x, hw_shape)
        return super().forward(x, hw_shape)

    def projection(self) -> tuple[Tensor, Tensor | None]:
        if self.reflection is None:
            return super().projection()
        return self.reflection.fold(*super().projection())

    def switch_to_deploy(self) -> None:
        """Fold the cross-head reflection into the projection for good."""
        if self.reflection is None or self.reflection.u is None:
            return
        weight, bias = self.projection()
        self.qkv.weight.data = weight.detach()
        if bias is not None:
            self.qkv.bias.data = bias.detach()
        self.reflection.u = self.reflection.u_k = None

    def project(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple[Tensor, ...]:
        if not self._folds(x):
            return super().project(x, hw_shape)
        channels = self.embed_dims
        weight, bias = self.projection()
        weights = weight.split(channels)[2:]
        biases = (None,) * len(weights) if bias is None else bias.split(channels)[2:]
        folded, shift = self._fold_angles(weight, bias, x)
        q, k = torch.baddbmm(shift, x, folded).split(channels, dim=-1)
        return q, k, *(F.linear(x, *layer) for layer in zip(weights, biases))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        options = dict(
            feature_map=self.feature_map,
            rank_augmented=self.rank_augmented,
            hw_shape=tuple(hw_shape) if self.rope else None,
        )
        if self.reflection is None or self._folds(q):
            return mirror_attention(q, k, v, **options)
        if self.feature_map == 'relu':
            # The operator's mirror map is reflection and ReLU in one.
            mirror = self.reflection
            options.update(mirror.options, feature_map='mirror', theta_k=mirror.theta_k)
            return mirror_attention(q, k, v, mirror.theta, **options)
        q, k = self.reflection(q, k)
        return mirror_attention(q, k, v, **options)

    def _folds(self, x: Tensor) -> bool:
        """Whether the projection reflects, for x of shape (B, N, C) or heads (B, H, N, d).

        On a CPU that pays where the covariance of the input, N C^2 + 2 C^3 multiplications, costs
        less than some ten passes over N C numbers. The fused operator on a GPU reflects for free.
        """
        return (
            self.reflection is not None
            and self.sr is None
            and x.device.type == 'cpu'
            and forced_backend() in (None, 'lean')
            and not symbolic()
            and x.shape[-2] >= 8 * self.embed_dims
        )

    def _fold_angles(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        qk = slice(2 * self.embed_dims)
        return self.reflection.fold_angles(weight[qk], None if bias is None else bias[qk], x)

    def _stream(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        weight, bias = self.projection()
        channels = self.embed_dims
        biases = (None,) * 4 if bias is None else bias.split(channels)
        weights = [w.t() for w in weight.split(channels)]
        out = torch.empty_like(x)
        for picture, result in zip(x, out):
            if self.reflection is not None:
                folded, shift = self._fold_angles(weight, bias, picture.unsqueeze(0))
                weights[:2] = folded[0].split(channels, dim=-1)
                biases = (*shift[0, 0].split(channels), *biases[2:])
            self._stream_picture(picture, list(zip(weights, biases)), tuple(hw_shape), result)
        return out

    def _stream_picture(
        self,
        x: Tensor,
        projections: list[tuple[Tensor, Tensor | None]],
        hw_shape: tuple[int, int],
        out: Tensor,
    ) -> None:
        """Attend over the tokens of one picture (N, C) into ``out`` (N, C), strip by strip.

        ``projections`` holds the weight (C, C) and bias of q, k, v and, with a gate, the gate.
        Until a strip of the output is due, ``out`` keeps its queries: one map less at the peak.
        """
        height, width = hw_shape
        heads = (-1, self.num_heads, self.head_dim)
        to_q, to_k, to_v, *to_gate = projections
        strips = [
            (rows, slice(rows[0] * width, rows[1] * width))
            for rows in row_strips(height, 3 * width * x.shape[1] * x.element_size())
        ]

        def turn_of(rows: tuple[int, int], like: Tensor) -> Tensor | None:
            return rotation(hw_shape, like, rows) if self.rope else None

        for _, tokens in strips:
            self._feature(project(x[tokens], *to_q, out=out[tokens]))
        mean_query = out.mean(0).view(heads[1:]) if self.rank_augmented else None
        state = StreamedState(*heads[1:], mean_query, x)
        v = torch.empty_like(x)
        for rows, tokens in strips:
            k = self._feature(project(x[tokens], *to_k)).view(heads).transpose(0, 1)
            values = project(x[tokens], *to_v, out=v[tokens]).view(heads).transpose(0, 1)
            state.add(k, values, turn_of(rows, k))
        v = to_map(v.unsqueeze(0), hw_shape)
        for rows, tokens in strips:
            queries = out[tokens].view(heads).transpose(0, 1)
            attended = state.read(queries, turn_of(rows, queries)).transpose(0, 1)
            if self.lepe is None:
                attended = attended.flatten(1)
            else:
                start, stop = input_rows(self.lepe, rows, height)
                near = v[:, :, start:stop]
                local = conv_rows(
                    near, self.lepe, self.lepe.weight, self.lepe.bias, rows, start, height
                )
                attended = to_tokens(local)[0].view(heads).add_(attended).flatten(1)
            for gate in to_gate:
                attended.mul_(project(x[tokens], *gate))
            project(attended, self.proj.weight.t(), self.proj.bias, out=out[tokens])

    def _feature(self, x: Tensor) -> Tensor:
        """The feature map, in place."""
        return x.relu_() if self.feature_map == 'relu' else F.elu_(x).add_(1)


def project(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x W + b``, into ``out`` if given."""
    if bias is None:
        return torch.mm(x, weight, out=out)
    return torch.addmm(bias, x, weight, out=out)
