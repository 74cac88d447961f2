"""RAVLT the way its authors run it: the yardstick of the benchmarks.

Straightforward and unfused, with the memory layout and the operations of the published backbone for
dense prediction (Fan et al., CVPR 2025): NCHW maps, 1x1 convolutions as projections, layer norms
between two permuted copies, RoPE on every token, ELU + 1 features. Parameters carry the names of
the published checkpoints. Models are built from :class:`mirrorla_mm.backbones.RAVLT`; this one is
for comparison alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceRAVLT(nn.Module):
    """The yardstick backbone, four normalised maps at strides 4 to 32.

    Args:
        embed_dims (Sequence[int]): Channels of the stages.
        depths (Sequence[int]): Blocks of the stages.
        num_heads (Sequence[int]): Heads of the stages.
        layout (Sequence[str]): ``'linear'`` or ``'softmax'`` per stage.
        mlp_ratio (float): Hidden over outer channels. Defaults to 3.5.
        drop_path_rate (float): Drop-path probability of the last block. Defaults to 0.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        layout: Sequence[str],
        mlp_ratio: float = 3.5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.patch_embed = _Stem(embed_dims[0])
        self.layers = nn.ModuleList()
        for i, channels in enumerate(embed_dims):
            blocks = [
                _Block(channels, num_heads[i], layout[i], mlp_ratio, next(rates))
                for _ in range(depths[i])
            ]
            following = embed_dims[i + 1] if i + 1 < len(embed_dims) else None
            self.layers.append(_Stage(channels, num_heads[i], blocks, following))
        self.extra_norms = nn.ModuleList(_MapNorm(channels) for channels in embed_dims)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to four maps."""
        x = self.patch_embed.proj(x)
        outputs = []
        for stage, norm in zip(self.layers, self.extra_norms):
            x, following = stage(x)
            outputs.append(norm(x))
            x = following
        return tuple(outputs)


class _Stem(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 3
        for width, stride in (
            (channels // 2, 2),
            (channels // 2, 1),
            (channels // 2, 1),
            (channels, 2),
        ):
            layers += [nn.Conv2d(width_in, width, 3, stride, 1), nn.BatchNorm2d(width), nn.GELU()]
            width_in = width
        self.proj = nn.Sequential(*layers[:-1])


class _Stage(nn.Module):
    def __init__(
        self, channels: int, heads: int, blocks: list[nn.Module], following: int | None
    ) -> None:
        super().__init__()
        self.RoPE = _RoPE(channels // heads)
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if following is None else _Downsample(channels, following)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sin, cos = self.RoPE(x.shape[-2:])
        for block in self.blocks:
            x = block(x, sin, cos)
        return x, x if self.downsample is None else self.downsample(x)


class _Downsample(nn.Module):
    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, following, 3, 2, 1)
        self.norm = nn.BatchNorm2d(following)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x))


class _RoPE(nn.Module):
    def __init__(self, head_dim: int) -> None:
        super().__init__()
        frequency = 10000.0 ** -torch.linspace(0, 1, head_dim // 4)
        self.register_buffer('angle', frequency.repeat_interleave(2))

    def forward(self, hw_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        height, width = hw_shape
        row = torch.arange(height).to(self.angle)[:, None] * self.angle
        column = torch.arange(width).to(self.angle)[:, None] * self.angle
        tables = []
        for function in (torch.sin, torch.cos):
            by_row = function(row).unsqueeze(1).repeat(1, width, 1)
            by_column = function(column).unsqueeze(0).repeat(height, 1, 1)
            tables.append(torch.cat((by_row, by_column), dim=-1).flatten(0, 1))
        return tables[0], tables[1]


def _rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    quarter_turn = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + quarter_turn * sin


class _MapNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1).contiguous())
        return x.permute(0, 3, 1, 2).contiguous()


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int, kind: str) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.core = self._linear if kind == 'linear' else self._softmax
        self.qkvo = nn.Conv2d(channels, 4 * channels, 1)
        self.lepe = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        packed = self.qkvo(x)
        qkv, gate = packed[:, : 3 * channels], packed[:, 3 * channels :]
        lepe = self.lepe(qkv[:, 2 * channels :])
        heads = qkv.reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = heads.permute(1, 0, 2, 4, 3)
        out = self.core(q, k, v, sin, cos)
        out = out.transpose(-2, -1).reshape(batch, channels, height, width) + lepe
        return self.proj(out * gate)

    def _linear(self, q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        tokens = q.shape[-2]
        q, k = F.elu(q) + 1.0, F.elu(k) + 1.0
        scores = self.scale * q.mean(dim=-2, keepdim=True) @ k.transpose(-1, -2)
        k = k * torch.softmax(scores, dim=-1).transpose(-1, -2) * tokens
        q_turned, k_turned = _rotate(q, sin, cos), _rotate(k, sin, cos)
        normaliser = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
        state = (k_turned.transpose(-2, -1) * tokens**-0.5) @ (v * tokens**-0.5)
        return q_turned @ state * normaliser

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
        return torch.softmax(self.scale * q @ k.transpose(-1, -2), dim=-1) @ v


class _FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        return self.fc2(self.dwconv(x) + x)


class _Block(nn.Module):
    def __init__(
        self, channels: int, heads: int, kind: str, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.pos = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = _MapNorm(channels)
        self.attn = _Attention(channels, heads, kind)
        self.norm2 = _MapNorm(channels)
        self.ffn = _FeedForward(channels, int(mlp_ratio * channels))
        self.gamma_1 = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma_2 = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        x = x + self.pos(x)
        x = x + self._drop(self.gamma_1 * self.attn(self.norm1(x), sin, cos))
        return x + self._drop(self.gamma_2 * self.ffn(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop_path)
        return x * keep.div_(1 - self.drop_path)
