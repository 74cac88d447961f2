"""The learnable reflections, for any attention with a non-negative feature map."""

from __future__ import annotations

import math

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops import cross_head_reflection, reflect
from ..ops.folding import (
    fold_block_reflection,
    fold_cross_head_reflection,
    token_covariance,
)


class Reflection(BaseModule):
    """Reorient queries and keys before their feature map clips them (paper, Eq. 12 to 18).

    A cross-head reflection, folded into the projection by :meth:`fold`, and block reflections at
    variance-aware angles, applied by calling the module or by the fused operator.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H; C / H, the head dimension d, needs to be even.
        lam (float): Sensitivity of the angle to the variance (Eq. 14). Defaults to 1.
        alpha_max (float): Largest modulation in radians (Eq. 14). Defaults to pi/2.
        variance_aware (bool): Modulate the angles ("full" in Tab. 8). Defaults to True.
        cross_head (bool): Reflect across heads ("head" in Tab. 8). Defaults to True.
        shared (bool): One set of reflections for q and k, which keeps ``<Hq, Hk> = <q, k>``.
            Defaults to True.

    Raises:
        ValueError: If the head dimension is odd.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        lam: float = 1.0,
        alpha_max: float = math.pi / 2,
        variance_aware: bool = True,
        cross_head: bool = True,
        shared: bool = True,
    ) -> None:
        super().__init__()
        head_dim = embed_dims // num_heads
        if head_dim % 2:
            raise ValueError(
                'The mirror map reflects pairs of channels: the head dimension needs to be even, '
                f'got {head_dim} ({embed_dims} channels in {num_heads} heads).'
            )
        self.options = dict(lam=lam, alpha_max=alpha_max, variance_aware=variance_aware)
        self.theta = nn.Parameter(torch.randn(num_heads, head_dim // 2))
        self.theta_k = None if shared else nn.Parameter(torch.randn(num_heads, head_dim // 2))
        self.u = nn.Parameter(torch.randn(embed_dims)) if cross_head else None
        self.u_k = nn.Parameter(torch.randn(embed_dims)) if cross_head and not shared else None

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Fold the cross-head reflection into a packed projection.

        ``W' = (I - 2uu^T) W`` for the rows of q and k costs C^2 once instead of NC per call.

        Args:
            weight (Tensor): Rows of q, k and whatever follows, shape (>= 2C, C).
            bias (Tensor, optional): Shape (>= 2C,).

        Returns:
            tuple[Tensor, Tensor | None]: The same shapes.
        """
        if self.u is None:
            return weight, bias
        channels = len(self.u)
        u_k = self.u if self.u_k is None else self.u_k
        mirrors = (self.u, u_k)
        *qk, rest = weight.split((channels, channels, len(weight) - 2 * channels))
        folded = torch.cat((*map(fold_cross_head_reflection, qk, mirrors), rest))
        if bias is None:
            return folded, None
        *qk, rest = bias.split((channels, channels, len(bias) - 2 * channels))
        return folded, torch.cat((*map(cross_head_reflection, qk, mirrors), rest))

    def fold_angles(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fold the block reflections of each picture into its projection to q and k.

        Args:
            weight (Tensor): Rows of q and k, cross-head reflection included, shape (2C, C).
            bias (Tensor, optional): Shape (2C,).
            x (Tensor): What will be projected, shape (B, N, C).

        Returns:
            tuple[Tensor, Tensor]: ``W'`` of shape (B, C, 2C) and ``b'`` of shape (B, 1, 2C) with
            ``x W' + b'`` the reflected queries and keys.
        """
        theta = torch.cat((self.theta, self.theta if self.theta_k is None else self.theta_k))
        return fold_block_reflection(weight, bias, theta, token_covariance(x), **self.options)

    def reflect_all(self, x: Tensor, key: bool = False) -> Tensor:
        """Both reflections of queries, or with ``key`` of keys, of shape (B, H, N, d), where
        something stands before the reflection that cannot be folded with it, such as a position
        table or a scale of the channels."""
        u = self.u_k if key and self.u_k is not None else self.u
        theta = self.theta_k if key and self.theta_k is not None else self.theta
        if u is not None:
            flat = cross_head_reflection(x.transpose(1, 2).flatten(2), u)
            x = flat.unflatten(-1, (x.shape[1], -1)).transpose(1, 2)
        return reflect(x, theta, **self.options)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Block-reflect q and k of shape (B, H, N, d); no feature map is applied."""
        theta_k = self.theta if self.theta_k is None else self.theta_k
        return reflect(q, self.theta, **self.options), reflect(k, theta_k, **self.options)
