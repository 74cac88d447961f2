"""The parts of the RAVLT host strip by strip, see :mod:`mirrorla_mm.ops.strips`.

Each function takes a module of :mod:`.layers` and does what its ``forward`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.maps import to_map, to_tokens
from ..ops.products import affine_of
from ..ops.strips import conv_rows, row_strips

if TYPE_CHECKING:
    from .layers import Block, ConvChain


def conv_chain(chain: ConvChain, x: Tensor) -> Tensor:
    """Convolutions with GELU between."""
    convs, weights = zip(*((conv, _cast(folded, x)) for conv, folded in chain.folded()))
    if len(convs) == 1:  # There is nothing between to keep in cache.
        return F.conv2d(x, *weights[0], convs[0].stride, convs[0].padding)
    sizes = [tuple(x.shape[2:])]
    for conv in convs:
        sizes.append(tuple((n - 1) // conv.stride[0] + 1 for n in sizes[-1]))
    heights = [height for height, _ in sizes]
    out = x.new_empty(len(x), *sizes[-1], convs[-1].out_channels).permute(0, 3, 1, 2)
    row_bytes = 8 * x[:1, :, :1].nbytes * (heights[0] // heights[-1])
    for image, result in zip(x.split(1), out.split(1)):
        for rows in row_strips(heights[-1], row_bytes):
            spans = [rows]
            for conv, height in zip(reversed(convs), reversed(heights[:-1])):
                spans.insert(0, spans[0].read_by(conv.kernel_size[0], conv.stride[0], height))
            strip = image[:, :, slice(*spans[0])]
            for i, (conv, layer) in enumerate(zip(convs, weights)):
                strip = torch.ops.aten.gelu_(strip) if i else strip
                first, stride = spans[i].start, conv.stride[0]
                strip = conv_rows(strip, *layer, spans[i + 1], heights[i], first, stride)
            result[:, :, slice(*rows)] = strip
    return out


def feed_forward(block: Block, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """The normalised, scaled feed-forward network onto x."""
    height, width = hw_shape
    ffn, conv = block.ffn, block.ffn.dwconv
    out, kernel = torch.empty_like(x), _cast((conv.kernel(), conv.bias), x)
    fc1, fc2 = (affine_of(layer, x.dtype) for layer in (ffn.fc1, ffn.fc2))
    row_bytes = width * ffn.fc1.out_features * x.element_size()
    for image, result in zip(x, out):
        for rows in row_strips(height, row_bytes):
            near = rows.read_by(conv.kernel_size[0], 1, height)
            hidden = torch.ops.aten.gelu_(fc1(block.norm2(image[near.tokens(width)])))
            hidden = to_map(hidden.unsqueeze(0), (near.stop - near.start, width))
            hidden = conv_rows(hidden, *kernel, rows, height, near.start, groups=conv.groups)
            branch = fc2(to_tokens(hidden)[0])
            tokens = rows.tokens(width)
            add(block, image[tokens], branch, block.gamma2, out=result[tokens])
    return out


def add(
    block: Block, x: Tensor, branch: Tensor, gamma: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """A scaled branch onto x, by default in its place, as x is the block's own."""
    out = x if out is None else out
    if gamma is None:
        return torch.add(x, branch, out=out)
    return torch.addcmul(x, branch, gamma.to(x.dtype), out=out)


def _cast(tensors: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(like.dtype) for tensor in tensors)
