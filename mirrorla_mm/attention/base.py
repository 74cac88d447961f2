"""What all attention modules share: projections, heads, local enhancement and gate."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn


class Attention(BaseModule):
    """Multi-head attention over the tokens of a map; a method fills in :meth:`attend`.

    ``proj((attend(q, k, v) + lepe(v)) * gate)``, where the local enhancement and the gate are there
    only for the hosts that ask for them.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H; C / H is the head dimension d.
        qkv_bias (bool): Bias of the packed projection. Defaults to True.
        gate (bool): Project a gate beside q, k, v and multiply the output by it (RAVLT's host).
        lepe_kernel (int): Size of the depth-wise convolution of v that is added to the output
            (locally enhanced positional encoding); 0 for none.
        rope (bool): Turn q and k by a 2-D rotary position embedding; d needs to be a multiple of 4.
        init_cfg (dict, optional): Initialisation, see :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If C is not a multiple of H, or d not a multiple of 4 with ``rope``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        gate: bool = False,
        lepe_kernel: int = 0,
        rope: bool = False,
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
        if rope and self.head_dim % 4:
            raise ValueError(
                f'2-D RoPE needs a head dimension that is a multiple of 4, got {self.head_dim} '
                f'({embed_dims} channels in {num_heads} heads).'
            )
        self.qkv = nn.Linear(embed_dims, (4 if gate else 3) * embed_dims, bias=qkv_bias)
        self.lepe = depthwise(embed_dims, lepe_kernel) if lepe_kernel else None
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Attend over all tokens.

        Args:
            x (Tensor): Shape (B, N, C).
            hw_shape (tuple[int, int]): Height and width of the grid, N = height * width.

        Returns:
            Tensor: Shape (B, N, C).
        """
        q, k, v, *gate = self.project(x).split(self.embed_dims, dim=-1)
        heads = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = self.attend(*heads, hw_shape).transpose(1, 2).flatten(2)
        if self.lepe is not None:
            out = out + to_tokens(self.lepe(to_map(v, hw_shape)))
        if gate:
            out = out * gate[0]
        return self.proj(out)

    def project(self, x: Tensor) -> Tensor:
        """Project to q, k, v and, with a gate, the gate: (B, N, C) to (B, N, 3C or 4C)."""
        return F.linear(x, self.qkv.weight, self.qkv.bias)

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The method itself: q, k, v of shape (B, H, N, d) to the same shape."""


def depthwise(channels: int, kernel_size: int) -> nn.Conv2d:
    """A depth-wise convolution that keeps the size of the map."""
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C): a view of a channels-last map."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """(B, N, C) to a channels-last (B, C, H, W), without a copy."""
    return x.transpose(1, 2).unflatten(2, tuple(hw_shape))
