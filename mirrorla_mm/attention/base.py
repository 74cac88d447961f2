"""What all attention modules share: projections, heads, local enhancement and gate."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops import rope_2d


class Attention(BaseModule):
    """Multi-head attention over the tokens of a map; a method fills in :meth:`attend`.

    ``proj((attend(q, k, v) + lepe(v)) * gate)``, where the local enhancement and the gate are there
    only for the hosts that ask for them. A method that comes with a local enhancement or a gate of
    its own uses that one instead of the host's.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H; C / H is the head dimension d.
        qkv_bias (bool): Bias of the packed projection. Defaults to True.
        gate (bool): Project a gate beside q, k, v and multiply the output by it (RAVLT's host).
        lepe_kernel (int): Size of the depth-wise convolution of v that is added to the output
            (locally enhanced positional encoding); 0 for none.
        rope (bool): Turn q and k by a 2-D rotary position embedding; d needs to be a multiple of 4.
        out_norm (bool): Normalise the output before the gate and pass the gate through a SiLU
            (NaLaFormer's host).
        sr_ratio (int): Spatial reduction (PVT's host): k and v come from a map that a convolution
            of this stride has shrunk, so they have M = (height // sr_ratio) * (width // sr_ratio)
            tokens. Defaults to 1, M = N.
        grid_size (tuple[int, int]): Height and width of the token grid that learned position tables
            are made for; they are interpolated to any other. Defaults to (14, 14).
        init_cfg (dict, optional): Initialisation, see :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If C is not a multiple of H, or d not a multiple of 4 with ``rope``, or if both
            ``rope`` and ``sr_ratio`` are asked for.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        gate: bool = False,
        lepe_kernel: int = 0,
        rope: bool = False,
        out_norm: bool = False,
        sr_ratio: int = 1,
        grid_size: tuple[int, int] = (14, 14),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims ({embed_dims}) needs to be a multiple of num_heads ({num_heads}).'
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.head_dim = embed_dims // num_heads
        self.rope = rope
        self.sr_ratio = sr_ratio
        self.grid_size = tuple(grid_size)
        if rope and sr_ratio > 1:
            raise ValueError(
                f'RoPE needs q and k on one grid: it cannot be used with sr_ratio={sr_ratio}.'
            )
        if rope and self.head_dim % 4:
            raise ValueError(
                f'2-D RoPE needs a head dimension that is a multiple of 4, got {self.head_dim} '
                f'({embed_dims} channels in {num_heads} heads).'
            )
        self.qkv = nn.Linear(embed_dims, (4 if gate else 3) * embed_dims, bias=qkv_bias)
        self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, sr_ratio) if sr_ratio > 1 else None
        self.sr_norm = nn.LayerNorm(embed_dims) if sr_ratio > 1 else None
        self.lepe = depthwise(embed_dims, lepe_kernel) if lepe_kernel else None
        self.out_norm = nn.LayerNorm(embed_dims) if out_norm else None
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Attend over all tokens.

        Args:
            x (Tensor): Shape (B, N, C).
            hw_shape (tuple[int, int]): Height and width of the grid, N = height * width.

        Returns:
            Tensor: Shape (B, N, C).
        """
        q, k, v, *gate = self.project(x, hw_shape)
        heads = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = self.attend(*heads, hw_shape).transpose(1, 2).flatten(2)
        local = self.local(x, v, hw_shape)
        return self.proj(self.modulate(out if local is None else out + local, *gate))

    def project(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple[Tensor, ...]:
        """Project to q, k, v and, with a gate, the gate.

        Args:
            x (Tensor): Shape (B, N, C).
            hw_shape (tuple[int, int]): Height and width of the grid.

        Returns:
            tuple[Tensor, ...]: q and gate of shape (B, N, C), k and v of shape (B, M, C).
        """
        channels = self.embed_dims
        weight, bias = self.projection()
        if self.sr is None:
            return F.linear(x, weight, bias).split(channels, dim=-1)
        x_kv = self.sr_norm(to_tokens(self.sr(to_map(x, hw_shape))))
        weights = weight.split(channels)
        biases = [None] * len(weights) if bias is None else bias.split(channels)
        inputs = (x, x_kv, x_kv, x)[: len(weights)]
        return tuple(map(F.linear, inputs, weights, biases))

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Weight (3C or 4C, C) and bias of the packed projection: rows of q, k, v and the gate."""
        return self.qkv.weight, self.qkv.bias

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The method itself: q of shape (B, H, N, d), k and v of (B, H, M, d) to (B, H, N, d)."""

    def local(self, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor | None:
        """The local enhancement (B, N, C), if any, of the values v (B, M, C) of the tokens x."""
        return None if self.lepe is None else to_tokens(self.lepe(self.full_map(v, hw_shape)))

    def modulate(self, out: Tensor, gate: Tensor | None = None) -> Tensor:
        """Normalise and gate the attended values: (B, N, C) to the same shape."""
        if self.out_norm is not None:
            out = self.out_norm(out)
        if gate is None:
            return out
        return out * (gate if self.out_norm is None else F.silu(gate))

    def rope_angles(self, q: Tensor, hw_shape: tuple[int, int]) -> Tensor | None:
        """Angles (N, d/2) of the rotary embedding on q's device, or None in a host without it."""
        if not self.rope:
            return None
        dtype = torch.promote_types(q.dtype, torch.float32)
        return rope_2d(hw_shape, self.head_dim, device=q.device, dtype=dtype)

    def kv_shape(self, hw_shape: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the grid of k and v."""
        return hw_shape[0] // self.sr_ratio, hw_shape[1] // self.sr_ratio

    def full_map(self, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """v (B, M, C) as a map (B, C, height, width), interpolated where it was reduced."""
        return resize_map(to_map(v, self.kv_shape(hw_shape)), hw_shape)


def depthwise(channels: int, kernel_size: int) -> nn.Conv2d:
    """A depth-wise convolution that keeps the size of the map."""
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C): a view of a channels-last map."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """(B, N, C) to a channels-last (B, C, H, W), without a copy.

    Splitting before transposing keeps the batch's stride right when B = 1; with any other the
    convolution would not recognise channels-last memory and copy the map twice.
    """
    return x.unflatten(1, tuple(hw_shape)).permute(0, 3, 1, 2)


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of a map (B, C, h, w) to (B, C, *size); itself where sizes agree."""
    size = tuple(size)
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode='bilinear')
