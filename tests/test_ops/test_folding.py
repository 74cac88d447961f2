import pytest
import torch
from torch import nn

from mirrorla_mm.ops import block_variance, cross_head_reflection, reflect, strips
from mirrorla_mm.ops.folding import fold_block_reflection, projected_angle, token_covariance
from mirrorla_mm.ops.products import PLAIN


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize('variance_aware', [True, False])
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('dim', [4, 5])
@pytest.mark.parametrize('modulation', [(), (0.6, 2.0)], ids=['defaults', 'modulation'])
def test_folded_projection_reflects(variance_aware, with_bias, dim, modulation):
    heads, channels = 3, 10
    x = 3 + randn(2, 50, channels)  # Off centre: a covariance is not a mean of squares.
    weight, theta, u = randn(heads * dim, channels), randn(heads, dim // 2), randn(heads * dim)
    bias = randn(heads * dim) if with_bias else None

    projected = nn.functional.linear(x, weight, bias)
    split = cross_head_reflection(projected, u).unflatten(-1, (heads, dim)).transpose(1, 2)
    expected = reflect(split, theta, *modulation, variance_aware=variance_aware)
    expected = expected.transpose(1, 2).flatten(2)

    weight = cross_head_reflection(weight.t(), u).t()
    bias = None if bias is None else cross_head_reflection(bias, u)
    angle = projected_angle(weight, x, theta, *modulation) if variance_aware else theta
    folded, shift = fold_block_reflection(weight, bias, angle)
    torch.testing.assert_close(x @ folded + shift, expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_a_folded_projection_has_the_dtype_of_the_plain_one(dtype):
    weight, bias = torch.randn(8, 6).to(dtype), torch.randn(8).to(dtype)
    folded, shift = fold_block_reflection(weight, bias, torch.ones(2, 2))
    assert folded.dtype == shift.dtype == dtype


def test_autocast_changes_nothing():
    x, weight, bias = torch.randn(1, 50, 6), torch.randn(8, 6), torch.randn(8)

    def folded():
        angle = projected_angle(weight, x, torch.ones(2, 2))
        return token_covariance(x), angle, *fold_block_reflection(weight, bias, angle)

    expected = folded()
    with torch.autocast('cpu', torch.bfloat16):
        assert all(map(torch.equal, folded(), expected))


def test_variance_from_covariance_survives_a_constant_image():
    x = torch.full((1, 9, 4), 1e3)
    angle = projected_angle(torch.randn(4, 4), x, torch.randn(1, 2))
    assert angle.isfinite().all()
    assert block_variance(x.unsqueeze(1)).abs().max() == 0


def test_covariance_is_the_same_in_strips(monkeypatch):
    monkeypatch.setattr(strips, 'STRIP_BYTES', 1000)
    x = 1e3 + randn(2, 50, 6)  # A mean of squares would lose digits here.
    expected = torch.stack([torch.cov(image.t(), correction=0) for image in x])
    torch.testing.assert_close(token_covariance(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(token_covariance(x), expected)


@pytest.mark.parametrize('device, parts', [('cpu', 7), ('meta', 1)])
def test_tokens_are_split_where_there_is_a_cache_to_keep_them_in(device, parts, monkeypatch):
    calls = []

    def gather(x, y):
        calls.append(x)
        return PLAIN.gather(x, y)

    monkeypatch.setattr(strips, 'STRIP_BYTES', 8 * 2 * 6 * 8)  # eight tokens of both images
    token_covariance(randn(2, 50, 6).to(device), PLAIN._replace(gather=gather))
    assert len(calls) == parts


@pytest.mark.parametrize('seed', range(4))
def test_a_variance_that_rounds_below_zero_counts_as_zero(seed):
    torch.manual_seed(seed)
    direction, across = torch.eye(8)[0] + 0.3, torch.randn(64, 8)
    across = across - (across @ direction / direction.square().sum()).unsqueeze(1) * direction
    x = 1e4 * torch.randn(1, 500, 1) * direction  # Varies along one direction alone.
    angle = projected_angle(across, x, torch.zeros(8, 4))
    assert (angle >= torch.pi / 4 - 1e-4).all()
