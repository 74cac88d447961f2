"""Properties of every operator for any shape, layout, magnitude and degenerate content."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mirrorla_mm import ops
from mirrorla_mm.ops import folding
from mirrorla_mm.ops.windows import Windows

from .strategies import (
    contents,
    fill,
    grids,
    heads,
    lay_out,
    layouts,
    magnitudes,
    queries_keys_values,
    seeds,
    shapes,
)

HALVES = (torch.float16, torch.bfloat16)
FEATURE_MAPS = ('mirror', 'elu', 'relu')


def features(*tokens: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(ops.elu_feature_map, tokens))


# What each operator makes of queries, keys and values (B, H, N, d), angles (H, d/2), a mirror
# vector (d,) and the grid of the tokens; those of features take non-negative queries and keys.
OPERATORS = {
    'apply_rope': lambda q, k, v, theta, u, grid: ops.apply_rope(q, ops.rope_2d(grid, q.shape[-1])),
    'block_reflection': lambda q, k, v, theta, u, grid: ops.block_reflection(q, theta),
    'block_variance': lambda q, k, v, theta, u, grid: ops.block_variance(q),
    'cross_head_reflection': lambda q, k, v, theta, u, grid: ops.cross_head_reflection(q, u),
    'elu_feature_map': lambda q, k, v, theta, u, grid: ops.elu_feature_map(q),
    'linear_attention': lambda q, k, v, theta, u, grid: ops.linear_attention(
        q, k, v, ops.rope_2d(grid, q.shape[-1])
    ),
    'mirror_attention': lambda q, k, v, theta, u, grid: ops.mirror_attention(
        q, k, v, theta, hw_shape=grid
    ),
    'mirror_attention_reference': lambda q, k, v, theta, u, grid: ops.mirror_attention_reference(
        q, k, v, theta, hw_shape=grid
    ),
    'mirror_feature_map': lambda q, k, v, theta, u, grid: ops.mirror_feature_map(q, theta),
    'rank_augmented_attention': lambda q, k, v, theta, u, grid: ops.rank_augmented_attention(
        q, k, v, ops.rope_2d(grid, q.shape[-1])
    ),
    'reflect': lambda q, k, v, theta, u, grid: ops.reflect(q, theta),
    'token_weights': lambda q, k, v, theta, u, grid: ops.token_weights(q, k),
    'variance_aware_angle': lambda q, k, v, theta, u, grid: ops.variance_aware_angle(
        theta, ops.block_variance(q)
    ),
    'token_covariance': lambda q, k, v, theta, u, grid: folding.token_covariance(q.flatten(0, 1)),
    'projected_angle': lambda q, k, v, theta, u, grid: folding.projected_angle(
        k[0].transpose(-2, -1).flatten(0, 1), v.transpose(-2, -1).flatten(0, 1), theta
    ),
    'fold_block_reflection': lambda q, k, v, theta, u, grid: torch.cat(
        folding.fold_block_reflection(k[0].transpose(-2, -1).flatten(0, 1), None, theta)
    ),
    'householder': lambda q, k, v, theta, u, grid: ops.householder(u),
    'np_map': lambda q, k, v, theta, u, grid: ops.np_map(q, ops.cross_head_reflection(q, u)),
    'self_saliency': lambda q, k, v, theta, u, grid: ops.self_saliency(
        0.25 + 0.5 * q.sigmoid()  # At 1 its slope is infinite; nothing is differentiated there.
    ),
    'self_saliency_divergence': lambda q, k, v, theta, u, grid: ops.self_saliency_divergence(
        q, torch.zeros(q.shape[:-1], dtype=torch.long)
    ),
    'one_denominator': lambda q, k, v, theta, u, grid: ops.one_denominator(
        q, k, v, *features(q, k), own := torch.eye(q.shape[2], dtype=torch.bool), ~own
    ),
    'still_attention': lambda q, k, v, theta, u, grid: ops.still_attention(
        q, k, v, *features(q, k), grid, Windows(2, 1)
    ),
    'still_causal': lambda q, k, v, theta, u, grid: ops.still_causal(
        q, k, v, *features(q, k), chunk=2, top_k=1
    )[0],
}
OF_FEATURES = {'linear_attention', 'rank_augmented_attention', 'token_weights'}
NO_OPERATORS = {'BackendError', 'available_backends', 'use_backend', 'rope_2d'}
BACKENDS = ('torch', 'lean')


def angles(shape, seed: int) -> Tensor:
    return torch.randn(shape[1], shape[3] // 2, generator=torch.Generator().manual_seed(seed))


def leaf(x: Tensor) -> Tensor:
    """A leaf that keeps the strides of ``x``."""
    return x.detach().requires_grad_()


def assert_finite_with_gradients(out: Tensor, *inputs: Tensor) -> None:
    assert torch.isfinite(out).all()
    # A weight of the output's own scale: the gradient of the mean square, not of an overflow.
    grads = torch.autograd.grad(out.float().mean(), inputs, allow_unused=True)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


def with_gradients(operator, inputs, grid) -> tuple[Tensor, list[Tensor]]:
    """The output and the gradients of its mean, zeros for what it does not depend on."""
    inputs = [leaf(x) for x in inputs]
    out = operator(*inputs, grid)
    return out, torch.autograd.grad(
        out.float().mean(), inputs, allow_unused=True, materialize_grads=True
    )


def assert_close_to_scale(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Error relative to the largest entry, which is what rounding of sums is relative to."""
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    assert ((actual.double() - expected.double()).abs().max() / scale).item() <= tolerance


def test_every_operator_is_in_the_list():
    assert OPERATORS.keys() >= set(ops.__all__) - NO_OPERATORS
    for name in ops.__all__:  # Decorators keep what a reader of the documentation sees.
        assert getattr(ops, name).__name__ == name and getattr(ops, name).__doc__


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('dtype', (torch.float32, torch.float64, *HALVES))
@given(data=st.data(), shape=shapes(4), grid=grids, seed=seeds)
def test_every_operator_is_finite_with_finite_gradients(name, dtype, data, shape, grid, seed):
    shape = (*shape[:2], math.prod(grid), shape[3])
    u = fill(shape[-1:], 'random', data.draw(magnitudes), seed)
    q, k, v = (data.draw(heads(shape)).to(dtype) for _ in range(3))
    if name in OF_FEATURES:
        q, k = q.abs(), k.abs()
    inputs = q, k, v, angles(shape, seed), u
    out, grads = with_gradients(OPERATORS[name], inputs, grid)
    assert torch.isfinite(out).all()
    if dtype == torch.float16:
        # A gradient with respect to numbers of 1e-4 may itself be beyond float16, never undefined.
        _, wide = with_gradients(OPERATORS[name], [x.float() for x in inputs], grid)
        beyond = [grad.abs() > torch.finfo(dtype).max / 2 for grad in wide]
        assert all((g.isfinite() | b & ~g.isnan()).all() for g, b in zip(grads, beyond))
    else:
        assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('dtype', (torch.float32, *HALVES))
@pytest.mark.parametrize('grid', ((1, 1), (2, 3)))
def test_every_operator_has_finite_gradients_at_exact_zeros(name, dtype, grid):
    shape = (1, 2, math.prod(grid), 8)
    q, k, v = (leaf(torch.zeros(shape, dtype=dtype)) for _ in range(3))
    theta, u = leaf(torch.zeros(2, 4)), leaf(torch.zeros(8))
    out = OPERATORS[name](q, k, v, theta, u, grid)
    assert_finite_with_gradients(out, q, k, v, theta, u)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('feature_map', FEATURE_MAPS)
@given(data=st.data(), grid=grids, seed=seeds, rope=st.booleans())
def test_every_backend_stays_near_double(backend, feature_map, data, grid, seed, rope):
    shape = (2, 2, math.prod(grid), 8)
    q, k, v = (data.draw(heads(shape)) for _ in range(3))
    q, k, v = map(leaf, (q, k, v))
    theta = leaf(angles(shape, seed))
    options = dict(feature_map=feature_map, hw_shape=grid if rope else None)
    with ops.use_backend(backend):
        out = ops.mirror_attention(q, k, v, theta, **options)
    assert_finite_with_gradients(out, q, k, v, theta)
    exact = ops.mirror_attention_reference(
        q.double(), k.double(), v.double(), theta.double(), **options
    )
    # Where a normaliser is about eps, float32 decides as little as half precision does below.
    error, size = (out - exact).abs(), v.detach().double().abs().max()
    well_posed = (exact.abs() > 1e-3 * size) & (exact.abs() <= size)
    assert (error[well_posed] <= 0.01 * size).all()


@given(data=st.data(), magnitude=magnitudes, seed=seeds)
def test_folded_reflections_are_the_reflections_of_what_is_projected(data, magnitude, seed):
    weight, x = fill((8, 8), 'random', 1.0, seed), data.draw(heads((1, 1, 6, 8)))[0]
    u = fill((8,), 'random', magnitude, seed)
    folded = x @ ops.cross_head_reflection(weight, u)
    assert_close_to_scale(folded, ops.cross_head_reflection(x @ weight, u), 1e-5)


@given(data=st.data(), shape=shapes(), seed=seeds)
def test_block_reflection_is_an_isometry_and_its_own_inverse(data, shape, seed):
    x, theta = data.draw(heads(shape)), angles(shape, seed)
    y = ops.block_reflection(x, theta)
    assert_close_to_scale(ops.block_reflection(y, theta), x, 1e-6)
    assert_close_to_scale(y.double().norm(dim=-1), x.double().norm(dim=-1), 1e-6)


@given(data=st.data(), shape=shapes(), magnitude=magnitudes, seed=seeds)
def test_cross_head_reflection_is_an_isometry_for_a_mirror_of_any_length(
    data, shape, magnitude, seed
):
    x = data.draw(heads(shape))
    u = fill((shape[-1],), 'random', magnitude, seed)
    y = ops.cross_head_reflection(x, u)
    assert_close_to_scale(ops.cross_head_reflection(y, u), x, 1e-5)
    # Reflecting the mirror vector itself turns it round; a map that forgot to reflect would not.
    assert_close_to_scale(ops.cross_head_reflection(u, u), -u, 1e-5)


@given(data=st.data(), shape=shapes(), seed=seeds)
def test_reflection_keeps_inner_products_of_queries_and_keys_at_one_angle(data, shape, seed):
    q, k = data.draw(heads(shape)), data.draw(heads(shape))
    theta = angles(shape, seed)
    before = q.double() @ k.double().transpose(-2, -1)
    q, k = (ops.reflect(t, theta, variance_aware=False) for t in (q, k))
    after = q.double() @ k.double().transpose(-2, -1)
    bound = q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max()
    assert (after - before).abs().max() <= 1e-6 * bound


@given(
    data=st.data(),
    shape=shapes(),
    seed=seeds,
    lam=st.sampled_from([0.0, 0.25, 1.0, 1e4]),
    alpha_max=st.sampled_from([0.0, math.pi / 8, math.pi / 2]),
)
def test_angle_stays_between_half_and_all_of_the_modulation(data, shape, seed, lam, alpha_max):
    theta = angles(shape, seed)
    variance = ops.block_variance(data.draw(heads(shape)))
    assert (variance >= 0).all()
    shift = ops.variance_aware_angle(theta, variance, lam, alpha_max) - theta
    assert (shift >= alpha_max / 2 - 1e-6).all() and (shift <= alpha_max + 1e-6).all()


@given(data=st.data(), shape=shapes(), seed=seeds, aware=st.booleans())
def test_mirror_map_is_non_negative_and_finite_with_finite_gradients(data, shape, seed, aware):
    x, theta = leaf(data.draw(heads(shape))), leaf(angles(shape, seed))
    y = ops.mirror_feature_map(x, theta, variance_aware=aware)
    assert (y >= 0).all() and y.shape == x.shape
    assert_finite_with_gradients(y, x, theta)


@given(qkv=queries_keys_values(), seed=seeds)
def test_mirror_map_of_constant_tokens_has_the_largest_modulation(qkv, seed):
    x = qkv[0][:, :, :1].expand_as(qkv[0])
    theta = angles(x.shape, seed)
    expected = ops.block_reflection(x, theta + math.pi / 2)
    # The mean of equal float32 numbers may round, so their variance is zero only to rounding: an
    # angle is nailed down where the magnitude leaves that below eps.
    if x.abs().max() <= 1:
        assert_close_to_scale(ops.reflect(x, theta), expected, 1e-5)


@given(data=st.data(), shape=shapes(4), grid=grids)
def test_rope_turns_and_keeps_lengths(data, shape, grid):
    shape = (*shape[:2], math.prod(grid), shape[3])
    x = data.draw(heads(shape))
    y = ops.apply_rope(x, ops.rope_2d(grid, shape[-1]))
    assert_close_to_scale(y.double().norm(dim=-1), x.double().norm(dim=-1), 1e-6)


@given(qkv=queries_keys_values(), augmented=st.booleans())
def test_linear_attention_stays_in_the_hull_of_the_values_and_zero(qkv, augmented):
    q, k, v = (qkv[0].abs(), qkv[1].abs(), qkv[2])
    attend = ops.rank_augmented_attention if augmented else ops.linear_attention
    out = attend(q, k, v)
    slack = 1e-5 * v.abs().max()
    assert (out <= v.amax(-2, keepdim=True).clamp_min(0) + slack).all()
    assert (out >= v.amin(-2, keepdim=True).clamp_max(0) - slack).all()


@given(qkv=queries_keys_values())
def test_token_weights_sum_to_one(qkv):
    weight = ops.token_weights(qkv[0].abs(), qkv[1].abs())
    assert (weight >= 0).all()
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(weight[..., 0]))


@pytest.mark.parametrize('feature_map', FEATURE_MAPS)
@given(qkv=queries_keys_values(), seed=seeds, augmented=st.booleans())
def test_operator_and_all_its_gradients_are_finite(feature_map, qkv, seed, augmented):
    q, k, v = (leaf(t) for t in qkv)
    theta = leaf(angles(q.shape, seed))
    out = ops.mirror_attention(q, k, v, theta, feature_map=feature_map, rank_augmented=augmented)
    assert out.shape == v.shape and out.dtype == v.dtype
    assert_finite_with_gradients(out, q, k, v, theta)


@pytest.mark.parametrize('feature_map', FEATURE_MAPS)
@given(data=st.data(), grid=grids, seed=seeds)
def test_operator_with_rope_is_finite_with_finite_gradients(feature_map, data, grid, seed):
    shape = (2, 2, math.prod(grid), 8)
    q, k, v = (leaf(data.draw(heads(shape))) for _ in range(3))
    theta = leaf(angles(shape, seed))
    out = ops.mirror_attention(q, k, v, theta, feature_map=feature_map, hw_shape=grid)
    assert_finite_with_gradients(out, q, k, v, theta)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('feature_map', FEATURE_MAPS)
@given(qkv=queries_keys_values(), seed=seeds)
def test_half_precision_is_finite_and_near_double(feature_map, dtype, qkv, seed):
    q, k, v = (t.to(dtype) for t in qkv)
    theta = angles(q.shape, seed)
    out = ops.mirror_attention(q, k, v, theta, feature_map=feature_map)
    assert out.dtype == dtype and torch.isfinite(out).all()
    exact = ops.mirror_attention(
        q.double(), k.double(), v.double(), theta.double(), feature_map=feature_map
    )
    # Compared with the values' scale: a query whose normaliser is about eps is ill-conditioned in
    # float32 too, but never leaves their hull.
    error = (out.double() - exact).abs()
    well_posed = exact.abs() > 1e-3 * v.double().abs().max()
    assert (error[well_posed] <= 0.05 * v.double().abs().max()).all()


@pytest.mark.parametrize('dtype', HALVES)
@given(data=st.data(), grid=grids, seed=seeds)
def test_half_precision_with_rope_is_finite(dtype, data, grid, seed):
    shape = (1, 2, math.prod(grid), 8)
    q, k, v = (data.draw(heads(shape)).to(dtype) for _ in range(3))
    out = ops.mirror_attention(q, k, v, angles(shape, seed), hw_shape=grid)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_orthogonal_query_and_key_with_rope_do_not_overflow(dtype):
    q, k = torch.zeros(2, 1, 1, 6, 4, dtype=dtype)
    q[..., 0], k[..., 1] = 1, 1
    v = torch.ones_like(q)
    exact = ops.mirror_attention(
        q.float(), k.float(), v.float(), feature_map='relu', hw_shape=(2, 3)
    )
    assert (
        exact.abs().max() > 1e5
    )  # The normaliser is eps while the turned vectors are not orthogonal.
    out = ops.mirror_attention(q, k, v, feature_map='relu', hw_shape=(2, 3))
    assert torch.isfinite(out).all() and torch.equal(out.sign(), exact.sign().to(dtype))


@pytest.mark.parametrize('dtype', HALVES)
@given(qkv=queries_keys_values(), seed=seeds)
def test_autocast_changes_nothing_inside_the_operator(dtype, qkv, seed):
    theta = angles(qkv[0].shape, seed)
    outside = ops.mirror_attention(*qkv, theta)
    with torch.autocast('cpu', dtype=dtype):
        inside = ops.mirror_attention(*qkv, theta)
    assert torch.equal(outside, inside)


@pytest.mark.parametrize('feature_map', FEATURE_MAPS)
@given(layout=st.tuples(layouts, layouts, layouts), content=contents, shape=shapes(), seed=seeds)
def test_layout_of_the_inputs_does_not_matter(feature_map, layout, content, shape, seed):
    theta = angles(shape, seed)
    qkv = [fill(shape, content, 1.0, seed + i)[:1].expand(shape) for i in range(3)]
    plain = ops.mirror_attention(*(t.contiguous() for t in qkv), theta, feature_map=feature_map)
    strided = ops.mirror_attention(
        *(lay_out(t, name) for t, name in zip(qkv, layout)), theta, feature_map=feature_map
    )
    torch.testing.assert_close(strided, plain, rtol=1e-5, atol=1e-6)


@given(qkv=queries_keys_values(), seed=seeds)
def test_images_of_a_batch_do_not_see_each_other(qkv, seed):
    theta = angles(qkv[0].shape, seed)
    together = ops.mirror_attention(*qkv, theta)
    alone = torch.cat([ops.mirror_attention(*image, theta) for image in zip(*map(images, qkv))])
    assert_close_to_scale(together, alone, 1e-5)


def images(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(1)


@given(qkv=queries_keys_values(), seed=seeds)
def test_order_of_the_tokens_does_not_matter_without_positions(qkv, seed):
    theta = angles(qkv[0].shape, seed)
    order = torch.randperm(qkv[0].shape[2], generator=torch.Generator().manual_seed(seed))
    permuted = ops.mirror_attention(*(t[:, :, order] for t in qkv), theta, variance_aware=False)
    assert_close_to_scale(
        permuted, ops.mirror_attention(*qkv, theta, variance_aware=False)[:, :, order], 1e-3
    )


@pytest.mark.parametrize('feature_map', FEATURE_MAPS)
@pytest.mark.parametrize('dtype', (torch.float32, *HALVES))
@pytest.mark.parametrize('which', ('q', 'k', 'v', 'all'))
def test_exact_zeros_give_zero_and_finite_gradients(feature_map, dtype, which):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        leaf(torch.randn(1, 2, 6, 8, generator=generator).to(dtype) * (which not in (name, 'all')))
        for name in 'qkv'
    )
    theta = leaf(angles(q.shape, 0))
    out = ops.mirror_attention(q, k, v, theta, feature_map=feature_map, hw_shape=(2, 3))
    if feature_map != 'elu' or which in ('v', 'all'):
        assert out.abs().max() == 0
    assert_finite_with_gradients(out, q, k, v, theta)


@given(data=st.data(), seed=seeds)
def test_one_token_attends_to_itself(data, seed):
    q, k, v = (data.draw(heads((2, 2, 1, 4))) for _ in range(3))
    features = ops.elu_feature_map(q.double()), ops.elu_feature_map(k.double())
    similarity = (features[0] * features[1]).sum(-1, keepdim=True)
    out = ops.mirror_attention(q, k, v, feature_map='elu')
    assert_close_to_scale(out, v.double() * similarity / (similarity + 1e-6), 1e-5)
