"""The parts of the RAVLT host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.base import to_map, to_tokens
from ..ops.streaming import conv_rows, input_rows, row_strips, streams
from ..registry import build_attention

NORM_EPS = 1e-6


class ConvChain(nn.Sequential):
    """3x3 convolutions, each followed by a batch norm, with GELU between.

    Batch norms that do not learn from the batch are folded into their convolutions on the way.

    Args:
        channels (Sequence[int]): Channels of the input and of each convolution's output.
        strides (Sequence[int]): Stride of each convolution.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(channels, channels[1:], strides):
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
            layers += [conv, nn.BatchNorm2d(outputs), nn.GELU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / strides, W / strides), rounded up."""
        convs, norms = list(self)[::3], list(self)[1::3]
        if any(norm.training for norm in norms):
            return super().forward(x)
        folded = [fold_batch_norm(conv, norm) for conv, norm in zip(convs, norms)]
        if streams(x):
            return _stream_chain(convs, folded, x)
        for i, (conv, (weight, bias)) in enumerate(zip(convs, folded)):
            x = F.gelu(x) if i else x
            x = F.conv2d(x, weight, bias, conv.stride, conv.padding)
        return x

    def switch_to_deploy(self) -> None:
        """Fold the batch norms for good."""
        for i in range(0, len(self), 3):
            weight, bias = fold_batch_norm(self[i], self[i + 1])
            self[i].weight.data, self[i].bias.data = weight.detach(), bias.detach()
            self[i + 1] = nn.Identity().eval()


class Stem(ConvChain):
    """Four 3x3 convolutions that take a picture to stride 4: (B, 3, H, W) to (B, C, H/4, W/4)."""

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        half = embed_dims // 2
        super().__init__((in_channels, half, half, half, embed_dims), (2, 1, 1, 2))


class Downsample(ConvChain):
    """3x3 convolution of stride 2 and BN between two stages."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__((in_channels, out_channels), (2,))


def fold_batch_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the batch norm after it in evaluation mode, in one."""
    if isinstance(norm, nn.Identity):
        return conv.weight, conv.bias
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return (
        conv.weight * scale.view(-1, 1, 1, 1),
        (conv.bias - norm.running_mean) * scale + norm.bias,
    )


def _stream_chain(convs: list[nn.Conv2d], folded: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Convolutions with GELU between, in strips of output rows."""
    sizes = [x.shape[2:]]
    for conv in convs:
        sizes.append(torch.Size((n - 1) // conv.stride[0] + 1 for n in sizes[-1]))
    heights = [height for height, _ in sizes]
    out = x.new_empty(len(x), *sizes[-1], convs[-1].out_channels).permute(0, 3, 1, 2)
    row_bytes = x[:1, :, 0].nbytes * 8 * (heights[0] // heights[-1])
    for picture, result in zip(x.split(1), out.split(1)):
        for rows in row_strips(heights[-1], row_bytes):
            spans = [rows]
            for conv, height in zip(reversed(convs), reversed(heights[:-1])):
                spans.insert(0, input_rows(conv, spans[0], height))
            strip = picture[:, :, slice(*spans[0])]
            for i, (conv, weights) in enumerate(zip(convs, folded)):
                strip = torch.ops.aten.gelu_(strip) if i else strip
                strip = conv_rows(strip, conv, *weights, spans[i + 1], spans[i][0], heights[i])
            result[:, :, slice(*rows)] = strip
    return out


class ResidualDepthwise(nn.Conv2d):
    """``x + conv(x)`` with a depth-wise convolution, as one: the identity is its centre tap.

    Args:
        channels (int): Channels C.
        kernel_size (int): Odd. Defaults to 3.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        identity = torch.zeros(1, 1, kernel_size, kernel_size)
        identity[..., kernel_size // 2, kernel_size // 2] = 1
        self.register_buffer('identity', identity, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias, padding=self.padding, groups=self.groups)

    def kernel(self) -> Tensor:
        """The weight of the convolution and the identity together."""
        return self.weight if self.identity is None else self.weight + self.identity

    def switch_to_deploy(self) -> None:
        """Add the identity for good."""
        self.weight.data = self.kernel().detach()
        self.identity = None


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
        self.dwconv = ResidualDepthwise(hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        if streams(x):
            return self._stream(x, hw_shape)
        x = to_map(self.act(self.fc1(x)), hw_shape)
        return self.fc2(to_tokens(self.dwconv(x)))

    def _stream(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        height, width = hw_shape
        out, kernel = torch.empty_like(x), self.dwconv.kernel()
        row_bytes = width * self.fc1.out_features * x.element_size()
        for picture, result in zip(x, out):
            for rows in row_strips(height, row_bytes):
                start, stop = input_rows(self.dwconv, rows, height)
                hidden = torch.ops.aten.gelu_(self.fc1(picture[start * width : stop * width]))
                hidden = to_map(hidden.unsqueeze(0), (stop - start, width))
                hidden = conv_rows(
                    hidden, self.dwconv, kernel, self.dwconv.bias, rows, start, height
                )
                tokens = slice(rows[0] * width, rows[1] * width)
                result[tokens] = self.fc2(to_tokens(hidden)[0])
        return out


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
        self.pos = ResidualDepthwise(embed_dims)
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
        x = to_tokens(self.pos(x))
        x = self._add(x, self.attn(self.norm1(x), hw_shape), self.gamma1)
        x = self._add(x, self.ffn(self.norm2(x), hw_shape), self.gamma2)
        return to_map(x, hw_shape)

    def _add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        """Add a scaled branch to x, which is this block's own and may be overwritten."""
        if streams(x):
            return x.add_(branch) if gamma is None else x.addcmul_(branch, gamma)
        return x + self.drop_path(branch if gamma is None else gamma * branch)

    def switch_to_deploy(self) -> None:
        """Fold both LayerScales into the layers before them."""
        for name, layer in (('gamma1', self.attn.proj), ('gamma2', self.ffn.fc2)):
            gamma = getattr(self, name)
            if gamma is not None:
                layer.weight.data = (gamma.unsqueeze(1) * layer.weight).detach()
                layer.bias.data = (gamma * layer.bias).detach()
                setattr(self, name, None)


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: a shard for each block and one for the rest of the model.

    A policy by size would also wrap single layers whose weights are read without calling them.
    """
    return recurse or isinstance(module, Block)
