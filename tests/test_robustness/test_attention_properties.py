"""What every registered attention promises, whatever the tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mirrorla_mm  # noqa: F401
from mirrorla_mm.attention.base import Attention
from mirrorla_mm.registry import MODELS, build_attention

from .strategies import contents, fill, grids, seeds

HALVES = (torch.float16, torch.bfloat16)
METHODS = sorted(
    name
    for name, cls in MODELS.module_dict.items()
    if isinstance(cls, type) and issubclass(cls, Attention)
)
MAGNITUDES = st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 30.0, 1e4])


def attention(name: str, seed: int = 0, **options) -> Attention:
    torch.manual_seed(seed)
    return build_attention({'type': name, **options}, embed_dims=16, num_heads=2).eval()


def tokens(grid, content: str, magnitude: float, seed: int) -> torch.Tensor:
    return fill((2, math.prod(grid), 16), content, magnitude, seed)


every_method = pytest.mark.parametrize('name', METHODS)
host_options = st.sampled_from([{}, {'rope': True, 'gate': True, 'lepe_kernel': 5}])


@every_method
@given(grid=grids, content=contents, magnitude=MAGNITUDES, seed=seeds, options=host_options)
def test_output_and_all_gradients_are_finite(name, grid, content, magnitude, seed, options):
    module = attention(name, **options).train()
    x = tokens(grid, content, magnitude, seed).requires_grad_()
    out = module(x, grid)
    assert out.shape == x.shape and torch.isfinite(out).all()
    out.mean().backward()
    grads = [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert all(torch.isfinite(grad).all() for grad in grads)


@every_method
@pytest.mark.parametrize('dtype', HALVES)
@given(grid=grids, content=contents, seed=seeds)
def test_autocast_is_finite_and_near_float32(name, dtype, grid, content, seed):
    module = attention(name, rope=True)
    x = tokens(grid, content, 1.0, seed).requires_grad_()
    exact = module(x, grid)
    with torch.autocast('cpu', dtype=dtype):
        out = module(x, grid)
    assert torch.isfinite(out).all()
    out.float().mean().backward()
    assert torch.isfinite(x.grad).all()
    # A feature that a rounding moves across the ReLU's boundary may change one token much, not all.
    scale = exact.detach().abs().mean() + 1e-3
    assert (out.float() - exact).abs().median() <= 0.1 * scale


@every_method
@given(grid=grids, content=contents, seed=seeds)
def test_images_of_a_batch_do_not_see_each_other(name, grid, content, seed):
    module = attention(name, rope=True)
    x = tokens(grid, content, 1.0, seed)
    with torch.no_grad():
        together, alone = module(x, grid), torch.cat([module(image, grid) for image in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@every_method
@given(grid=grids, seed=seeds)
def test_strides_of_the_tokens_do_not_matter(name, grid, seed):
    module = attention(name)
    x = tokens(grid, 'random', 1.0, seed)
    strided = torch.stack((x, x.new_full((), math.nan).expand_as(x)), -1)[..., 0]
    with torch.no_grad():
        torch.testing.assert_close(module(strided, grid), module(x, grid), rtol=1e-4, atol=1e-5)
