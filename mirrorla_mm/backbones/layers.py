"""The parts of the RAVLT host."""

from __future__ import annotations

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.base import depthwise, to_map, to_tokens
from ..registry import build_attention

NORM_EPS = 1e-6


class Stem(nn.Sequential):
    """Four 3x3 convolutions that take a picture to stride 4: (B, 3, H, W) to (B, C, H/4, W/4)."""

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        half = embed_dims // 2
        layers: list[nn.Module] = []
        for channels, width, stride in zip(
            (in_channels, half, half, half), (half, half, half, embed_dims), (2, 1, 1, 2)
        ):
            layers += [*conv_bn(channels, width, stride), nn.GELU()]
        super().__init__(*layers[:-1])


class Downsample(nn.Sequential):
    """3x3 convolution of stride 2 and BN between two stages."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(*conv_bn(in_channels, out_channels, stride=2))


def conv_bn(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A 3x3 convolution and its batch norm."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.BatchNorm2d(out_channels)


class ConvFFN(BaseModule):
    """Feed-forward network with a residual depth-wise convolution between its two layers.

    Args:
        embed_dims (int): Channels C.
        hidden_dims (int): Channels between the two layers.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.dwconv = depthwise(hidden_dims, 3)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = to_map(self.act(self.fc1(x)), hw_shape)
        return self.fc2(to_tokens(x + self.dwconv(x)))


class Block(BaseModule):
    """Positional convolution, attention and feed-forward network, each residual.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        attn_cfg (dict): The attention module.
        mlp_ratio (float): Hidden over outer channels of the feed-forward network.
        drop_path (float): Probability of dropping a residual branch, in [0, 1).
        layer_scale (float): Initial value of both LayerScales.
        with_cp (bool): Recompute the block in the backward pass instead of keeping activations.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_cfg: dict,
        mlp_ratio: float = 3.5,
        drop_path: float = 0.0,
        layer_scale: float = 1.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.pos = depthwise(embed_dims, 3)
        self.norm1 = nn.LayerNorm(embed_dims, eps=NORM_EPS)
        self.attn = build_attention(
            attn_cfg,
            embed_dims=embed_dims,
            num_heads=num_heads,
            gate=True,
            lepe_kernel=5,
            rope=True,
        )
        self.norm2 = nn.LayerNorm(embed_dims, eps=NORM_EPS)
        self.ffn = ConvFFN(embed_dims, int(embed_dims * mlp_ratio))
        self.gamma1 = nn.Parameter(torch.full((embed_dims,), layer_scale))
        self.gamma2 = nn.Parameter(torch.full((embed_dims,), layer_scale))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        hw_shape = x.shape[-2:]
        x = to_tokens(x + self.pos(x))
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x), hw_shape))
        x = x + self.drop_path(self.gamma2 * self.ffn(self.norm2(x), hw_shape))
        return to_map(x, hw_shape)
