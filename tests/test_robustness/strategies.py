"""Hypothesis strategies: tensors of every layout, magnitude and degenerate content."""

import torch
from hypothesis import strategies as st
from torch import Tensor

MAGNITUDES = (1e-30, 1e-12, 1e-4, 1.0, 1e4)
CONTENTS = ('random', 'zero', 'constant', 'negative', 'mostly zero', 'one channel')
LAYOUTS = ('contiguous', 'heads last', 'every other token', 'expanded', 'reversed channels')

magnitudes = st.sampled_from(MAGNITUDES)
contents = st.sampled_from(CONTENTS)
layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**31)
grids = st.sampled_from([(1, 1), (1, 7), (5, 1), (2, 3), (4, 4), (3, 7)])


@st.composite
def shapes(draw, multiple: int = 2) -> tuple[int, int, int, int]:
    """(B, H, N, d), d a multiple of ``multiple``; one token is as likely as any other number."""
    head_dim = multiple * draw(st.integers(1, 4))
    return draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 9)), head_dim


def fill(shape: tuple[int, ...], content: str, magnitude: float, seed: int) -> Tensor:
    """A float32 tensor of that content whose largest entries are about ``magnitude``."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if content == 'zero':
        x = torch.zeros(shape)
    elif content == 'constant':
        x = torch.ones(shape)
    elif content == 'negative':
        x = -x.abs()
    elif content == 'mostly zero':
        x = x * (x > 1)
    elif content == 'one channel':
        x = x.abs() * (torch.arange(shape[-1]) == seed % shape[-1])
    return x * magnitude


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same (B, H, N, d) values in other memory, as views of projections and slices have it."""
    if layout == 'heads last':
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == 'every other token':
        return torch.stack((x, torch.full_like(x, torch.nan)), 3).flatten(2, 3)[:, :, ::2]
    if layout == 'expanded':
        return x[:1].expand(x.shape)
    if layout == 'reversed channels':
        return x.transpose(-2, -1).contiguous().transpose(-2, -1)
    return x.contiguous()


@st.composite
def heads(draw, shape: tuple[int, int, int, int]) -> Tensor:
    """A float32 tensor of that shape, of any content, magnitude and layout."""
    x = fill(shape, draw(contents), draw(magnitudes), draw(seeds))
    return lay_out(x, draw(layouts))


@st.composite
def queries_keys_values(draw, multiple: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors of one shape, each with contents, magnitude and layout of its own."""
    shape = draw(shapes(multiple))
    return tuple(draw(heads(shape)) for _ in range(3))
