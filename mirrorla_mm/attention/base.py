"""Parts that all attention modules share: projections, heads, local enhancement and gate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops.maps import resize_map, to_map, to_tokens
from ..ops.precision import saturate
from ..ops.products import Linear, linear
from ..ops.strips import Rows, conv_rows

# Weight (C, 1, k, k) and bias (C,) of a depth-wise convolution.
Kernel = tuple[Tensor, Tensor | None]


class Attention(BaseModule):
    """Multi-head attention over the tokens of a map; a method fills in :meth:`attend`.

    ``proj((attend(q, k, v) + local(v)) * gate)``; the local enhancement and the gate are there only
    for the hosts that ask for them.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H; C / H is the head dimension d.
        qkv_bias (bool): Bias of the packed projection. Defaults to True.
        gate (bool, optional): Project a gate beside q, k, v and multiply the output by it (RAVLT's
            host). Defaults to False.
        lepe_kernel (int, optional): Size of the depth-wise convolution of v that is added to the
            output (locally enhanced positional encoding). Defaults to 0, none.
        rope (bool, optional): Turn q and k by a 2-D rotary position embedding; d needs to be a
            multiple of 4. Defaults to False.
        out_norm (bool, optional): Normalise the output before the gate and pass the gate through a
            SiLU (NaLaFormer's host). Defaults to False.
        sr_ratio (int): Spatial reduction (PVT's host): k and v come from a map that a convolution
            of this stride has shrunk, so they have M = (height // sr_ratio) * (width // sr_ratio)
            tokens. Defaults to 1, M = N.
        grid_size (tuple[int, int]): Height and width of the token grid that learned position tables
            are made for; they are interpolated to any other. Defaults to (14, 14).
        init_cfg (dict, optional): Initialisation, see :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If C is not a multiple of H, or d not a multiple of 4 with ``rope``, if both
            ``rope`` and ``sr_ratio`` are asked for, or an option differs from what the method
            brings (:attr:`brings`).
    """

    # Options that a method sets itself: a host's are not offered to it, others are an error.
    brings: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        gate: bool | None = None,
        lepe_kernel: int | None = None,
        rope: bool | None = None,
        out_norm: bool | None = None,
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
        self.sr_ratio = sr_ratio
        self.grid_size = tuple(grid_size)
        self.rope = self._option('rope', rope, False)
        if self.rope and sr_ratio > 1:
            raise ValueError(
                f'RoPE needs q and k on one grid: it cannot be used with sr_ratio={sr_ratio}.'
            )
        if self.rope and self.head_dim % 4:
            raise ValueError(
                f'2-D RoPE needs a head dimension that is a multiple of 4, got {self.head_dim} '
                f'({embed_dims} channels in {num_heads} heads).'
            )
        parts = 4 if self._option('gate', gate, False) else 3
        lepe_kernel = self._option('lepe_kernel', lepe_kernel, 0)
        out_norm = self._option('out_norm', out_norm, False)
        self.qkv = Linear(embed_dims, parts * embed_dims, bias=qkv_bias)
        self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, sr_ratio) if sr_ratio > 1 else None
        self.sr_norm = nn.LayerNorm(embed_dims) if sr_ratio > 1 else None
        self.lepe = depthwise(embed_dims, lepe_kernel) if lepe_kernel else None
        self.out_norm = nn.LayerNorm(embed_dims) if out_norm else None
        self.proj = Linear(embed_dims, embed_dims)

    def _option(self, name: str, given: Any, default: Any) -> Any:
        own = self.brings.get(name, default)
        if name in self.brings and given not in (None, own):
            raise ValueError(
                f'{type(self).__name__} brings {name}={own!r} of its own and cannot take '
                f'{name}={given!r}: leave it out.'
            )
        return own if given is None else given

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Attend over all tokens.

        Args:
            x (Tensor): Shape (B, N, C).
            hw_shape (tuple[int, int]): Height and width of the grid, N = height * width.

        Returns:
            Tensor: Shape (B, N, C).
        """
        q, k, v, *gate = self.project(x, hw_shape)
        out = self.attend(*map(self.split_heads, (q, k, v)), hw_shape)
        return self.finish(out, self.local(x, v, hw_shape), *gate)

    def on_map(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Attend over a map after a norm, in the form for graphs: (B, C, H, W) to the same."""
        hw_shape = x.shape[-2:]
        return to_map(self(norm(to_tokens(x)), hw_shape), hw_shape)

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
            # The layer itself where nothing is folded: in deploy mode it is a faster one.
            own = weight is self.qkv.weight
            packed = self.qkv(x) if own else linear(x, weight, bias)
            return packed.split(channels, dim=-1)
        x_kv = self.sr_norm(to_tokens(self.sr(to_map(x, hw_shape))))
        weights = weight.split(channels)
        biases = [None] * len(weights) if bias is None else bias.split(channels)
        inputs = (x, x_kv, x_kv, x)[: len(weights)]
        return tuple(map(linear, inputs, weights, biases))

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Weight (3C or 4C, C) and bias of the packed projection: rows of q, k, v and the gate."""
        return self.qkv.weight, self.qkv.bias

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The method itself: q of shape (B, H, N, d), k and v of (B, H, M, d) to (B, H, N, d)."""

    def local(self, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor | None:
        """The local enhancement (B, N, C), if any, of the values v (B, M, C) of the tokens x."""
        kernel = self.local_kernel(x)
        if kernel is None:
            return None
        return self.local_rows(self.full_map(v, hw_shape), kernel, Rows(0, hw_shape[0]))

    def local_kernel(self, x: Tensor) -> Kernel | None:
        """The convolution of v that enhances it locally, if any, for the tokens x (B, N, C)."""
        return None if self.lepe is None else (self.lepe.weight, self.lepe.bias)

    def local_rows(self, v: Tensor, kernel: Kernel, rows: Rows) -> Tensor:
        """The tokens (B, n, C) of some rows of the convolved map v (B, C, height, width)."""
        return to_tokens(conv_rows(v, *kernel, rows, v.shape[2], groups=self.embed_dims))

    def full_map(self, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """v (B, M, C) as a map (B, C, height, width), interpolated where it was reduced."""
        return resize_map(to_map(v, self.kv_shape(hw_shape)), hw_shape)

    def finish(self, out: Tensor, local: Tensor | None, gate: Tensor | None = None) -> Tensor:
        """From attended heads to the module's output.

        In float16 sums and products are taken in float32, and what float16 cannot hold becomes its
        largest number.

        Args:
            out (Tensor): Shape (B, H, N, d); overwritten where no gradient is recorded.
            local (Tensor, optional): From :meth:`local`, shape (B, N, C); overwritten likewise.
            gate (Tensor, optional): Shape (B, N, C).

        Returns:
            Tensor: Shape (B, N, C).
        """
        dtype = out.dtype
        return saturate(self.proj(self.modulate(out, local, gate)), dtype)

    def modulate(self, out: Tensor, local: Tensor | None, gate: Tensor | None = None) -> Tensor:
        """The input of the projection in :meth:`finish`: (B, N, C)."""
        dtype, out = out.dtype, out.transpose(1, 2)
        if dtype == torch.float16:
            out = out.float()
        grad = torch.is_grad_enabled()
        add, multiply = (Tensor.add, Tensor.mul) if grad else (Tensor.add_, Tensor.mul_)
        if local is not None:
            local = local.unflatten(-1, out.shape[2:])
            out = out + local if dtype == torch.float16 else add(local, out)
        out = out.flatten(2)
        if self.out_norm is not None:
            out = self.out_norm(saturate(out, dtype))
        if gate is not None:
            out = multiply(out, gate if self.out_norm is None else F.silu(gate))
        return saturate(out, dtype)

    def fold_scale(self, gamma: Tensor) -> None:
        """Multiply the output by ``gamma`` (C,) for good."""
        scale_output(self.proj, gamma)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, H, N, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def kv_shape(self, hw_shape: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the grid of k and v."""
        return hw_shape[0] // self.sr_ratio, hw_shape[1] // self.sr_ratio


def depthwise(channels: int, kernel_size: int) -> nn.Conv2d:
    """A depth-wise convolution that keeps the size of the map."""
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


def scale_output(layer: nn.Linear, gamma: Tensor) -> None:
    """Multiply what a linear layer puts out by ``gamma`` (C,) for good."""
    layer.weight.data = (gamma.unsqueeze(1) * layer.weight).detach()
    layer.bias.data = (gamma * layer.bias).detach()
