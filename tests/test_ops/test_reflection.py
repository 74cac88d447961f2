import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from mirrorla_mm.ops import (
    block_reflection,
    block_variance,
    cross_head_reflection,
    mirror_feature_map,
    reflect,
    variance_aware_angle,
)
from tests.test_ops.algorithm1 import mirror_map


def heads_of(x, num_heads):
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


@pytest.mark.parametrize('variance_aware', [True, False])
@pytest.mark.parametrize('lam, alpha_max', [(1.0, math.pi / 2), (0.25, math.pi / 8)])
def test_mirror_map_is_algorithm_1(variance_aware, lam, alpha_max):
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    u, theta = torch.randn(12, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    options = dict(lam=lam, alpha_max=alpha_max, variance_aware=variance_aware)
    ours = mirror_feature_map(heads_of(cross_head_reflection(x, u), 3), theta, **options)
    expected = np.stack([mirror_map(row, u.numpy(), theta.numpy(), **options) for row in x.numpy()])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_mirror_map_gradients_agree_with_finite_differences():
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    theta = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    u = torch.randn(12, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    assert gradcheck(mirror_feature_map, (x, theta))
    assert gradcheck(reflect, (x, theta))
    assert gradcheck(cross_head_reflection, (tokens, u))


def test_sign_is_that_of_equation_4_and_not_of_equation_6():
    # At angle 0 the mirror vector is the first axis, so the first channel changes its sign.
    x = torch.tensor([[[[3.0, 5.0]]]])
    assert block_reflection(x, torch.zeros(1, 1)).flatten().tolist() == [-3.0, 5.0]
    features = mirror_feature_map(x, torch.zeros(1, 1), variance_aware=False)
    assert features.flatten().tolist() == [0.0, 5.0]


@pytest.mark.parametrize('map_', ['block', 'cross_head'])
def test_reflection_keeps_norms_and_inner_products_and_undoes_itself(map_):
    q, k = torch.randn(2, 2, 3, 11, 8, dtype=torch.float64).unbind(0)
    if map_ == 'block':
        angle = torch.randn(2, 3, 4, dtype=torch.float64)
        mirror = lambda x: block_reflection(x, angle)  # noqa: E731
    else:
        u = torch.randn(8, dtype=torch.float64)
        mirror = lambda x: cross_head_reflection(x, u)  # noqa: E731
    torch.testing.assert_close(mirror(q).norm(dim=-1), q.norm(dim=-1))
    torch.testing.assert_close(mirror(q) @ mirror(k).mT, q @ k.mT)
    torch.testing.assert_close(mirror(mirror(q)), q)
    assert not torch.allclose(mirror(q), q)


def test_cross_head_reflection_ignores_the_length_of_its_vector():
    x, u = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(cross_head_reflection(x, u), cross_head_reflection(x, -7 * u))
    torch.testing.assert_close(cross_head_reflection(u, u), -u)


def test_mirror_vector_may_have_zeros():
    x = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(
        cross_head_reflection(x, torch.tensor([0.0, 1.0, 0.0])), torch.tensor([1.0, -2.0, 3.0])
    )


def test_block_variance_is_the_mean_of_two_biased_channel_variances():
    x = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    expected = x.numpy().var(axis=2).reshape(2, 3, 2, 2).mean(-1)
    np.testing.assert_allclose(block_variance(x).numpy(), expected, rtol=1e-12)


def test_block_variance_survives_a_large_mean():
    # A naive mean of squares loses all digits here.
    x = torch.randn(1, 1, 1000, 2, dtype=torch.float64)
    shifted = (x + 1e4).float()
    torch.testing.assert_close(
        block_variance(shifted).double(), block_variance(shifted.double()), rtol=1e-4, atol=0
    )


def test_angle_lies_between_half_and_the_whole_of_alpha_max():
    theta = torch.zeros(2, 3)
    variance = torch.cat((torch.zeros(1, 2, 3), torch.logspace(-8, 8, 48).view(-1, 2, 3)))
    angle = variance_aware_angle(theta, variance, alpha_max=math.pi / 4)
    assert (angle >= math.pi / 8).all()
    assert (angle <= math.pi / 4 + 1e-6).all()
    torch.testing.assert_close(angle[0], torch.full((2, 3), math.pi / 4))


def test_angle_of_unit_variance_and_of_half_precision():
    theta, variance = torch.ones(1, 1), torch.ones(1, 1, 1)
    expected = 1 + math.pi / 2 / (1 + math.exp(-1 / (1 + 1e-6)))
    torch.testing.assert_close(variance_aware_angle(theta, variance), torch.tensor([[[expected]]]))
    small = torch.tensor([[[1.5]]]).half()
    assert torch.equal(
        variance_aware_angle(theta, small), variance_aware_angle(theta, small.float())
    )


@pytest.mark.parametrize(
    'x',
    [torch.randn(2, 3, 1, 8), torch.full((2, 3, 5, 8), 0.3), torch.zeros(2, 3, 5, 8)],
    ids=['one token', 'constant', 'zero'],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_tokens_give_finite_features_and_gradients(x, dtype):
    x = x.detach().clone().to(dtype).requires_grad_()
    theta = torch.randn(3, 4, requires_grad=True)
    features = mirror_feature_map(x, theta)
    features.sum().backward()
    assert features.dtype == dtype
    for t in (features, x.grad, theta.grad):
        assert t.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_variance_and_angle_are_float32_under_autocast(dtype):
    x, theta = torch.randn(2, 3, 20, 8), torch.randn(3, 4)
    expected = mirror_feature_map(x, theta)
    with torch.autocast('cpu', dtype=dtype):
        assert block_variance(x.to(dtype)).dtype == torch.float32
        torch.testing.assert_close(mirror_feature_map(x, theta), expected)
        tokens, u = torch.randn(5, 8), torch.randn(8)
        mirrored = cross_head_reflection(tokens, u)
    assert torch.equal(mirrored, cross_head_reflection(tokens, u))


def test_non_contiguous_input_and_empty_batch():
    packed = torch.randn(2, 30, 4, 3, 8).permute(0, 3, 1, 2, 4)[:, :, :, 1]
    theta = torch.randn(3, 4)
    assert not packed.is_contiguous()
    torch.testing.assert_close(
        mirror_feature_map(packed, theta), mirror_feature_map(packed.contiguous(), theta)
    )
    assert mirror_feature_map(torch.randn(0, 3, 5, 8), theta).shape == (0, 3, 5, 8)


@pytest.mark.parametrize('head_dim', [1, 5, 11])
def test_of_an_odd_head_dimension_the_last_channel_is_rectified_only(head_dim):
    x = torch.randn(2, 3, 7, head_dim, dtype=torch.float64)
    theta = torch.randn(3, head_dim // 2, dtype=torch.float64)
    reflected = reflect(x, theta)
    assert torch.equal(reflected[..., -1], x[..., -1])
    torch.testing.assert_close(reflected[..., :-1], reflect(x[..., :-1], theta))
    assert torch.equal(mirror_feature_map(x, theta), reflected.relu())
