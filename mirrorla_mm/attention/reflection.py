"""The learnable reflections, for any attention with a non-negative feature map."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops import block_reflection, reflect
from ..ops.folding import angle_of_covariance, fold_block_reflection, projected_angle
from ..ops.products import PLAIN, Products
from ..ops.reflection import reflect_along, unit_vector


class Reflection(BaseModule):
    """Reorient queries and keys before their feature map clips them (paper, Eq. 12 to 18).

    A cross-head reflection over all channels, then block reflections of pairs of channels at
    variance-aware angles. Of an odd head dimension the last channel has no partner.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H; C / H is the head dimension d.
        lam (float): Sensitivity of the angle to the variance (Eq. 14). Defaults to 1.
        alpha_max (float): Largest modulation in radians (Eq. 14). Defaults to pi/2.
        variance_aware (bool): Modulate the angles ("full" in Tab. 8). Defaults to True.
        cross_head (bool): Reflect across heads ("head" in Tab. 8). Defaults to True.
        shared (bool): One set of reflections for q and k. At fixed angles that keeps
            ``<Hq, Hk> = <q, k>``; variances, and so modulated angles, are those of q and of k
            apart. Defaults to True.
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
        blocks = embed_dims // num_heads // 2
        self.options = dict(lam=lam, alpha_max=alpha_max, variance_aware=variance_aware)
        self.theta = nn.Parameter(torch.randn(num_heads, blocks))
        self.theta_k = None if shared else nn.Parameter(torch.randn(num_heads, blocks))
        self.u = nn.Parameter(torch.randn(embed_dims)) if cross_head else None
        self.u_k = nn.Parameter(torch.randn(embed_dims)) if cross_head and not shared else None

    @property
    def variance_aware(self) -> bool:
        """Whether the angles of the block reflections differ from image to image."""
        return self.options['variance_aware']

    @property
    def theta_of_keys(self) -> Tensor:
        """The base angles of keys, which they may share with queries."""
        return self.theta if self.theta_k is None else self.theta_k

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Fold into a packed projection the reflections that are the same in all images.

        That is the cross-head reflection, ``W' = (I - 2uu^T) W`` for the rows of q and k, and block
        reflections at fixed angles. It costs C^2 once instead of NC per call.

        Args:
            weight (Tensor): Rows of q, k and whatever follows, shape (>= 2C, C).
            bias (Tensor, optional): Shape (>= 2C,).

        Returns:
            tuple[Tensor, Tensor | None]: The same shapes.
        """
        if self.u is None and self.variance_aware:
            return weight, bias
        channels, mirror = weight.shape[1], self._mirror()
        mirror_of_keys = mirror if self.u_k is None else self._mirror(key=True)

        def folded(rows: Tensor) -> Tensor:
            q, k, rest = rows.split((channels, channels, len(rows) - 2 * channels))
            q = self._reflect_fixed(q.t(), mirror).t()
            k = self._reflect_fixed(k.t(), mirror_of_keys, key=True).t()
            return torch.cat((q, k, rest))

        return folded(weight), None if bias is None else folded(bias)

    def _mirror(self, key: bool = False) -> Tensor | None:
        """The unit vector of the cross-head reflection of queries, or with ``key`` of keys."""
        u = self.u_k if key and self.u_k is not None else self.u
        return None if u is None else unit_vector(u)

    def _reflect_fixed(self, x: Tensor, mirror: Tensor | None, key: bool = False) -> Tensor:
        """The reflections of queries (..., C), or with ``key`` of keys, that no image changes."""
        if mirror is not None:
            x = reflect_along(x, mirror)
        if self.variance_aware:
            return x
        theta = self.theta_of_keys if key else self.theta
        heads = x.reshape(1, -1, len(theta), x.shape[-1] // len(theta)).transpose(1, 2)
        return reflect(heads, theta, variance_aware=False).transpose(1, 2).reshape(x.shape)

    def remainder(self) -> Reflection | None:
        """Drop what :meth:`fold` has folded for good; None where nothing is left to reflect."""
        self.u = self.u_k = None
        return self if self.variance_aware else None

    def fold_angles(
        self, weight: Tensor, bias: Tensor | None, x: Tensor, products: Products = PLAIN
    ) -> tuple[Tensor, Tensor]:
        """Fold the variance-aware block reflections of each image into its projection to q and k.

        Args:
            weight (Tensor): Rows of q, k and whatever follows, from :meth:`fold`, shape (>= 2C, C).
            bias (Tensor, optional): Shape (>= 2C,).
            x (Tensor): What will be projected, shape (B, N, C).
            products (Products): How to multiply matrices. Defaults to torch's own way.

        Returns:
            tuple[Tensor, Tensor]: ``W'`` of shape (B, C, 2C) and ``b'`` of shape (B, 1, 2C) with
            ``x W' + b'`` the reflected queries and keys.
        """
        qk = slice(2 * weight.shape[1])
        weight, bias = weight[qk], None if bias is None else bias[qk]
        theta = torch.cat((self.theta, self.theta_of_keys))
        modulation = self.options['lam'], self.options['alpha_max']
        angle = projected_angle(weight, x, theta, *modulation, products)
        return fold_block_reflection(weight, bias, angle)

    def reflect_heads(self, heads: Tensor, covariance: Tensor) -> Tensor:
        """The same of projections to each head, for an exported graph.

        Args:
            heads (Tensor): Of queries, then of keys, from :meth:`fold`, shape (2H, C, d).
            covariance (Tensor): Of the channels of what will be projected, shape (B, C, C).

        Returns:
            Tensor: Shape (B, 2H, C, d).
        """
        theta = torch.cat((self.theta, self.theta_of_keys))
        modulation = self.options['lam'], self.options['alpha_max']
        columns = heads.transpose(0, 1).flatten(1)
        return block_reflection(heads, angle_of_covariance(columns, covariance, theta, *modulation))

    def reflect_all(self, x: Tensor, key: bool = False) -> Tensor:
        """Both reflections of queries, or with ``key`` of keys, of shape (B, H, N, d).

        For what cannot be folded into the projection, as a position table or a scale of the
        channels stands between.
        """
        x = self._reflect_fixed(x.transpose(1, 2).flatten(2), self._mirror(key), key)
        x = x.unflatten(-1, (len(self.theta), -1)).transpose(1, 2)
        if not self.variance_aware:
            return x
        return reflect(x, self.theta_of_keys if key else self.theta, **self.options)

    def forward(
        self, q: Tensor, k: Tensor, way: Callable[..., Tensor] = reflect
    ) -> tuple[Tensor, Tensor]:
        """Block-reflect q and k of shape (B, H, N, d) in some way; no feature map is applied."""
        thetas = self.theta, self.theta_of_keys
        return tuple(way(x, theta, **self.options) for x, theta in zip((q, k), thetas))
