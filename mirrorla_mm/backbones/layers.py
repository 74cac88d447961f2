"""The parts of the RAVLT host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.base import scale_output
from ..ops.backend import for_graphs, forced_backend, use_backend
from ..ops.maps import to_map, to_tokens
from ..ops.products import Linear
from ..ops.strips import or_by_strips
from ..registry import build_attention
from . import strips

NORM_EPS = 1e-6

# Hidden channels that exported graphs hold at a time, of maps that are narrower: onnxruntime
# multiplies sets of 64, and each part writes the sum anew.
GRAPH_PART = 128


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
        if any(norm.training for norm in list(self)[1::3]):
            return super().forward(x)
        return self._forward_folded(x)

    @or_by_strips(strips.conv_chain)
    def _forward_folded(self, x: Tensor) -> Tensor:
        for i, (conv, weights) in enumerate(self.folded()):
            x = F.gelu(x) if i else x
            x = F.conv2d(x, *weights, conv.stride, conv.padding)
        return x

    def folded(self) -> Iterator[tuple[nn.Conv2d, tuple[Tensor, Tensor]]]:
        """Each convolution, with its weight and bias once the batch norm after it is folded in."""
        for conv, norm in zip(list(self)[::3], list(self)[1::3]):
            yield conv, fold_batch_norm(conv, norm)

    def fold_for_inference(self) -> None:
        """Fold the batch norms for good."""
        for i, (conv, (weight, bias)) in enumerate(self.folded()):
            weight = weight.detach().contiguous(memory_format=torch.channels_last)
            conv.weight.data, conv.bias.data = weight, bias.detach()
            self[3 * i + 1] = nn.Identity().eval()


class Stem(ConvChain):
    """Four 3x3 convolutions that take an image to stride 4: (B, 3, H, W) to (B, C, H/4, W/4)."""

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

    def fold_for_inference(self) -> None:
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
        self.fc1 = Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.dwconv = ResidualDepthwise(hidden_dims)
        self.fc2 = Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = to_map(self.act(self.fc1(x)), hw_shape)
        return self.fc2(to_tokens(self.dwconv(x)))

    def on_map(self, x: Tensor) -> Iterator[Tensor]:
        """By convolutions, in the form for graphs: summands (B, C, H, W) of the output.

        Narrow layers have the largest maps of a network: there each summand is what some hidden
        channels add, so that as many live at a time. Runtimes want a multiple of 16 channels, else
        there is one summand.
        """
        hidden = self.fc1.out_features
        part = GRAPH_PART if self.fc1.in_features < GRAPH_PART and hidden % 16 == 0 else hidden
        layers = self.fc1.weight, self.fc1.bias, self.dwconv.kernel(), self.dwconv.bias
        pieces = zip(*(layer.split(part) for layer in layers), self.fc2.weight.split(part, 1))
        for i, (first, shift, kernel, bias, last) in enumerate(pieces):
            y = self.act(F.conv2d(x, first[..., None, None], shift))
            y = F.conv2d(y, kernel, bias, padding=self.dwconv.padding, groups=len(kernel))
            yield F.conv2d(y, last[..., None, None], None if i else self.fc2.bias)

    def fold_scale(self, gamma: Tensor) -> None:
        """Multiply the output by ``gamma`` (C,) for good."""
        scale_output(self.fc2, gamma)


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
        if for_graphs() and not self.training:
            return self._on_map(x)
        if self.with_cp and x.requires_grad:
            # The backward pass recomputes in a thread of its own, which nobody forced a backend in.
            return checkpoint(self._under, forced_backend(), x, use_reentrant=False)
        return self._forward(x)

    def _under(self, backend: str | None, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._forward(x)
        with use_backend(backend):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        hw_shape = x.shape[-2:]
        return to_map(self._feed_forward(self._attend(x), hw_shape), hw_shape)

    def _attend(self, x: Tensor) -> Tensor:
        hw_shape = x.shape[-2:]
        x = to_tokens(self.pos(x))
        return self._add(x, self.attn(self.norm1(x), hw_shape), self.gamma1)

    def _on_map(self, x: Tensor) -> Tensor:
        return self._feed_forward_on_map(self._attend_on_map(x))

    def _attend_on_map(self, x: Tensor) -> Tensor:
        # A runtime keeps its own layout from convolution to convolution, and adds within them.
        x = self.pos(x)
        return _add_map(x, self.attn.on_map(x, self.norm1), self.gamma1)

    def _feed_forward_on_map(self, x: Tensor) -> Tensor:
        normalised = self.norm2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for summand in self.ffn.on_map(normalised):
            x = _add_map(x, summand, self.gamma2)
        return x

    @or_by_strips(strips.feed_forward)
    def _feed_forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return self._add(x, self.ffn(self.norm2(x), hw_shape), self.gamma2)

    @or_by_strips(strips.add)
    def _add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        if gamma is None:
            return x + self.drop_path(branch)
        # Drop-path multiplies all of an image by one number: that and gamma in one pass. The number
        # is drawn in gamma's dtype: bfloat16, which x may have, would round it.
        return torch.addcmul(x, branch, self.drop_path(gamma.new_ones(x.shape[0], 1, 1)) * gamma)

    def fold_for_inference(self) -> None:
        """Fold both LayerScales into the layers before them."""
        for name, branch in (('gamma1', self.attn), ('gamma2', self.ffn)):
            if getattr(self, name) is not None:
                branch.fold_scale(getattr(self, name))
                setattr(self, name, None)


def _add_map(x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
    return x + (branch if gamma is None else branch * gamma.view(-1, 1, 1))


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: a shard for each block and one for the rest of the model.

    A policy by size would also wrap single layers whose weights are read without calling them.
    """
    return recurse or isinstance(module, Block)
