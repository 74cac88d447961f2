"""Properties of every registered attention, for any tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mirrorla_mm  # noqa: F401
from mirrorla_mm.attention.base import Attention
from mirrorla_mm.registry import ATTENTIONS, build_attention

from .strategies import contents, fill, grids, seeds

HALVES = (torch.float16, torch.bfloat16)
METHODS = sorted(ATTENTIONS)
MAGNITUDES = st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 30.0, 1e4])


def attention(name: str, channels: int = 16, num_heads: int = 2, **options) -> Attention:
    torch.manual_seed(0)
    # A host offers its options: a method that brings its own is not asked to take them.
    offers = dict(embed_dims=channels, num_heads=num_heads, **options)
    return build_attention(dict(type=name), **offers).eval()


def tokens(
    grid, content: str, magnitude: float, seed: int, batch: int = 2, channels: int = 16
) -> torch.Tensor:
    return fill((batch, math.prod(grid), channels), content, magnitude, seed)


def finite_with_gradients(module: Attention, x: torch.Tensor, grid) -> torch.Tensor:
    """The output, once it and every gradient were seen to be finite."""
    x = x.detach().requires_grad_()
    out = module(x, grid)
    assert out.shape == x.shape and torch.isfinite(out).all()
    out.float().mean().backward()
    grads = [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert all(torch.isfinite(grad).all() for grad in grads)
    return out


# The same tokens in other memory; what lies between them is no number.
LAYOUTS = {
    'gaps': lambda x: torch.stack((x, torch.full_like(x, math.nan)), -1)[..., 0],
    'map': lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    'batch inside': lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    'one image expanded': lambda x: x[:1].expand_as(x),
    'offset': lambda x: torch.cat((torch.full_like(x[:, :1], math.nan), x), 1)[:, 1:],
}
every_method = pytest.mark.parametrize('name', METHODS)
host_options = st.sampled_from([{}, {'rope': True, 'gate': True, 'lepe_kernel': 5}])


@every_method
@given(
    grid=grids,
    content=contents,
    magnitude=MAGNITUDES,
    seed=seeds,
    options=host_options,
    batch=st.integers(1, 3),
    num_heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8, 20]),
)
def test_output_and_all_gradients_are_finite(
    name, grid, content, magnitude, seed, options, batch, num_heads, head_dim
):
    channels = num_heads * head_dim
    module = attention(name, channels, num_heads, **options).train()
    finite_with_gradients(module, tokens(grid, content, magnitude, seed, batch, channels), grid)


@every_method
@pytest.mark.parametrize('dtype', (torch.float64, *HALVES))
@given(grid=grids, content=contents, magnitude=MAGNITUDES, seed=seeds)
def test_every_dtype_is_kept_and_finite(name, dtype, grid, content, magnitude, seed):
    if dtype == torch.float16:
        magnitude = min(magnitude, 30.0)  # Sums over the channels of more are beyond float16.
    module = attention(name, rope=True).to(dtype)
    out = finite_with_gradients(module, tokens(grid, content, magnitude, seed).to(dtype), grid)
    assert out.dtype == dtype


@every_method
@pytest.mark.parametrize('dtype', (torch.float32, *HALVES))
@given(
    grid=grids,
    content=contents,
    seed=seeds,
    options=host_options,
    std=st.sampled_from([0.1, 0.5, 1]),
)
def test_random_weights_give_finite_outputs_in_every_dtype(
    name, dtype, grid, content, seed, options, std
):
    """Where queries and keys hardly meet, the attended values are as large as numbers get."""
    module = attention(name, **options).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    x = tokens(grid, content, 1.0, seed).to(dtype)
    assert torch.isfinite(module(x, grid)).all()
    with torch.no_grad():
        assert torch.isfinite(module(x, grid)).all()


@every_method
@pytest.mark.parametrize('grid', ((1, 1), (1, 7), (4, 4)))
@pytest.mark.parametrize('value', (0.0, 1e-30, 1.0, 1e4))
def test_constant_tokens_and_zero_weights_have_finite_gradients(name, grid, value):
    x = torch.full((1, math.prod(grid), 16), value)
    finite_with_gradients(attention(name, rope=True), x, grid)
    module = attention(name, rope=True)
    torch.nn.init.zeros_(module.qkv.weight)  # q, k and v are exact zeros, or the bias alone.
    torch.nn.init.zeros_(module.qkv.bias)
    finite_with_gradients(module, x, grid)


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
@given(grid=grids, seed=seeds, layout=st.sampled_from(sorted(LAYOUTS)))
def test_strides_of_the_tokens_do_not_matter(name, grid, seed, layout):
    module = attention(name)
    x = tokens(grid, 'random', 1.0, seed)[:1].expand(2, -1, -1)
    strided = LAYOUTS[layout](x)
    with torch.no_grad():
        torch.testing.assert_close(module(strided, grid), module(x, grid), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['MirrorAttention', 'PolaAttention'])
def test_no_random_module_of_a_gated_host_overflows_float16(name):
    """Nine and five of these 200 did, while saturated values were gated in float16."""
    for seed in range(200):
        module = attention(name, gate=True, rope=True, lepe_kernel=5)
        torch.manual_seed(seed)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
        x = torch.randn(1, 12, 16)
        assert torch.isfinite(module.half()(x.half(), (3, 4))).all(), seed


@pytest.mark.parametrize('grad', [True, False])
@torch.enable_grad()  # put back afterwards
def test_gating_and_projecting_the_largest_float16_stays_finite(grad):
    torch.set_grad_enabled(grad)  # without gradients, sums are taken in place
    module = attention('ReLUAttention', gate=True, lepe_kernel=5).half()
    torch.nn.init.ones_(module.proj.weight)
    largest = torch.finfo(torch.float16).max

    def full(value, *shape):
        return torch.full(shape, value, dtype=torch.float16)

    for gate, expected in ((0.0, 0.0), (3.0, largest), (1e-4, 2 * largest * 1e-4)):
        out, local = full(largest, 1, 2, 3, 8), full(largest, 1, 3, 16)
        modulated = module.modulate(out, local, full(gate, 1, 3, 16))
        torch.testing.assert_close(modulated, full(expected, 1, 3, 16), rtol=1e-2, atol=0)
        out, local = full(largest, 1, 2, 3, 8), full(largest, 1, 3, 16)
        assert torch.isfinite(module.finish(out, local, full(gate, 1, 3, 16))).all()
