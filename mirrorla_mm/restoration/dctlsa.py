"""DCTLSA, the super-resolution host of the paper's Table 4, with any attention in its windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..ops.backend import symbolic
from ..ops.products import Linear
from ..registry import build_attention, register_model


@register_model
class DCTLSA(BaseModule):
    """Densely connected transformer for super-resolution.

    Six groups of four attention blocks; each group sees a 1x1 convolution of the outputs of all
    groups before it. Sizes that are no multiple of the window are padded by reflection, in every
    layer. There is no mask where windows are shifted: opposite borders of an image mix.

    Source: Zeng et al., "Densely Connected Transformer With Linear Self-Attention for Lightweight
    Image Super-Resolution", IEEE Trans. Instrum. Meas. 2023.

    Args:
        upscale (int): Factor s between the sides of output and input. Defaults to 4.
        embed_dims (int): Channels C. Defaults to 55.
        num_heads (int): Heads of the attention. Defaults to 5.
        window_size (int): Side of a window in pixels of the input. Defaults to 16.
        num_groups (int): Groups of two layers of two blocks. Defaults to 6.
        mlp_ratio (float): Width of the feed-forward network over C. Defaults to 2.
        attn_cfg (dict, optional): The attention, anything in :mod:`mirrorla_mm.attention`. Defaults
            to the authors' own, ``LSA``.
        init_cfg (dict, optional): Initialisation, see :class:`mmengine.model.BaseModule`. Defaults
            to torch's, as the authors have it.

    Raises:
        ValueError: If ``upscale`` is below 1 or ``window_size`` below 2, or the attention cannot be
            built for these channels and heads.

    Example:
        >>> DCTLSA(upscale=2)(torch.rand(1, 3, 20, 30)).shape
        torch.Size([1, 3, 40, 60])
    """

    def __init__(
        self,
        upscale: int = 4,
        embed_dims: int = 55,
        num_heads: int = 5,
        window_size: int = 16,
        num_groups: int = 6,
        mlp_ratio: float = 2.0,
        attn_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if upscale < 1 or window_size < 2:
            raise ValueError(
                'upscale needs to be 1 at least and window_size 2, '
                f'got {upscale} and {window_size}.'
            )
        self.upscale = upscale
        self.window_size = window_size
        options = dict(
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            attn_cfg=attn_cfg or dict(type='LSA'),
        )
        self.stem = nn.Conv2d(3, embed_dims, 3, padding=1)
        self.groups = nn.ModuleList(
            nn.Sequential(*(Layer(embed_dims, **options) for _ in range(2)))
            for _ in range(num_groups)
        )
        # All but the last see the stem's output too; the last sees the groups alone.
        inputs = [*range(2, num_groups + 1), num_groups]
        self.fusions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n * embed_dims, embed_dims, 1), nn.LeakyReLU(0.05))
            for n in inputs
        )
        self.tail = nn.Conv2d(embed_dims, embed_dims, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(embed_dims, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge images.

        Args:
            x (Tensor): RGB in [0, 1], shape (B, 3, h, w) of any size.

        Returns:
            Tensor: RGB, not clamped to [0, 1], shape (B, 3, s * h, s * w).
        """
        first = x = self.stem(x)
        seen = [first]
        for group, fusion in zip(self.groups, self.fusions):
            seen.append(group(x))
            last = len(seen) > len(self.groups)
            x = fusion(torch.cat(seen[1:] if last else seen, dim=1))
        return self.upsampler(self.tail(x) + first)


class Layer(BaseModule):
    """A norm and two blocks, the second with shifted windows.

    Args:
        channels (int): Channels C.
        window_size (int): Side of a window.
        **options: Of :class:`Block`.
    """

    def __init__(self, channels: int, window_size: int, **options) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm = nn.LayerNorm(channels)
        self.blocks = nn.Sequential(
            *(Block(channels, window_size, shift, **options) for shift in (0, window_size // 2))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        height, width = x.shape[-2:]
        x = pad_by_reflection(x, self.window_size).permute(0, 2, 3, 1)
        return crop(self.blocks(self.norm(x)), height, width).permute(0, 3, 1, 2)


class Block(BaseModule):
    """Convolutions, attention in windows, and a feed-forward network.

    ``L = x + local(x)``, ``y = L + attn(L)``, ``y + ffn(y)``.

    Args:
        channels (int): Channels C.
        window_size (int): Side of a window.
        shift (int): Pixels that the map is rolled by before it is cut.
        num_heads (int): Heads of the attention.
        mlp_ratio (float): Width of the feed-forward network over C.
        attn_cfg (dict): The attention.
    """

    def __init__(
        self,
        channels: int,
        window_size: int,
        shift: int,
        num_heads: int,
        mlp_ratio: float,
        attn_cfg: dict,
    ) -> None:
        super().__init__()
        self.window = (window_size, window_size)
        self.shift = shift
        self.local = Local(channels)
        self.attn = build_attention(
            attn_cfg, embed_dims=channels, num_heads=num_heads, grid_size=self.window
        )
        hidden = int(channels * mlp_ratio)
        self.ffn = nn.Sequential(Linear(channels, hidden), nn.GELU(), Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape; both sides are multiples of the window's."""
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.attend(x)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x + self.ffn(x)

    def attend(self, x: Tensor) -> Tensor:
        """The attention in each window on its own, as if it was an image of its own."""
        return self.join(self.attn(self.cut(x), self.window), x.shape[1:3])

    def cut(self, x: Tensor) -> Tensor:
        """A map (B, H, W, C) to the tokens of one window after the other, (windows, N, C)."""
        side = self.window[0]
        rows, columns = (n // side for n in x.shape[1:3])
        # (B, rows, side, columns, side, C) to (B, rows, columns, side, side, C).
        windows = x.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        return windows.flatten(3, 4).flatten(0, 2)

    def join(self, tokens: Tensor, hw_shape: Sequence[int]) -> Tensor:
        """What :meth:`cut` has cut, put together to maps of H x W again."""
        side = self.window[0]
        rows, columns = (n // side for n in hw_shape)
        windows = tokens.unflatten(1, self.window).unflatten(0, (-1, rows, columns))
        return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Local(nn.Sequential):
    """``x + f(x)``, f a batch norm, 1x1, depth-wise 3x3, batch norm and 1x1, without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + super().forward(x)

    def fold_for_inference(self) -> None:
        """Fold both batch norms into convolutions."""
        before, pointwise, depthwise, after, _ = self
        if isinstance(before, nn.Identity):
            return
        self[1] = fuse_bn_conv_eval(before, pointwise)
        self[2] = fuse_conv_bn_eval(depthwise.eval(), after.eval())
        self[0] = self[3] = nn.Identity()


@torch.no_grad()
def fuse_bn_conv_eval(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Conv2d:
    """A 1x1 convolution with the batch norm before it folded in."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    fused = nn.Conv2d(conv.in_channels, conv.out_channels, 1).to(conv.weight)
    fused.weight.copy_(conv.weight * scale[:, None, None])
    fused.bias.copy_(conv.weight.flatten(1) @ shift)
    return fused.train(conv.training)


def pad_by_reflection(x: Tensor, multiple: int) -> Tensor:
    """Pad at the bottom and on the right, by reflection and as often as it takes.

    Args:
        x (Tensor): Shape (B, C, h, w).
        multiple (int): What the sides shall be multiples of.

    Returns:
        Tensor: The next size up; ``x`` itself where it is one.
    """
    sizes = x.shape[2:]
    more = [(size + multiple - 1) // multiple * multiple - size for size in sizes]
    # A graph is for images that one reflection is enough for, whether or not they need any.
    if symbolic() or (any(more) and all(n < size for n, size in zip(more, sizes))):
        return F.pad(x, (0, more[1], 0, more[0]), mode='reflect')
    for dim, (size, n) in enumerate(zip(sizes, more), 2):
        if n:
            x = x.index_select(dim, reflected_indices(size, size + n, x.device))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of a map (B, H, W, C)."""
    if not symbolic():
        return x[:, :height, :width]
    # The strides of a slice tell a graph whether it cuts anything, and that is to stay open.
    for dim, length in ((1, height), (2, width)):
        x = x.index_select(dim, torch.arange(length, device=x.device))
    return x


def reflected_indices(size: int, padded: int, device: torch.device) -> Tensor:
    """``0, 1, ..., size - 1, size - 2, ..., 0, 1, ...``, ``padded`` of them."""
    last = size - 1
    index = torch.arange(padded, device=device) % max(2 * last, 1)
    return last - (last - index).abs()
