"""Attention over maps, in the form for exported graphs, is that over tokens."""

import pytest
import torch
from torch import nn

from mirrorla_mm.attention import RALA, MirrorAttention, graph
from mirrorla_mm.attention.graph import covariance, normalised, weight_of_normalised
from mirrorla_mm.ops import use_backend
from mirrorla_mm.ops.folding import token_covariance
from tests.test_attention.quadratic import WEAK

pytest.importorskip('torch', minversion='2.9', reason='exports need torch 2.9')

CHANNELS = 16


@pytest.fixture
def norm():
    norm = nn.LayerNorm(CHANNELS, eps=1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.weight.data[3] = 0
    return norm.requires_grad_(False)


@pytest.fixture
def tokens():
    return 5 + torch.randn(2, 35, CHANNELS, dtype=torch.float64)


def check_over_a_map(attention, norm, tokens):
    maps = tokens.unflatten(1, (5, 7)).permute(0, 3, 1, 2)
    with use_backend('torch'):
        expected = attention(norm(tokens), (5, 7))
    with use_backend('graph'):
        out = attention.on_map(maps, norm)
    torch.testing.assert_close(out, expected.unflatten(1, (5, 7)).permute(0, 3, 1, 2))


@pytest.mark.parametrize('bias', [True, False])
def test_a_layer_after_a_norm_needs_neither_its_affine_part_nor_a_bias(norm, tokens, bias):
    layer = nn.Linear(CHANNELS, 6, bias).double().requires_grad_(False)
    weight = weight_of_normalised(norm, layer.weight, layer.bias)
    torch.testing.assert_close(normalised(tokens, norm.eps) @ weight.t(), layer(norm(tokens)))


def test_the_covariance_of_normalised_tokens_needs_no_mean(norm, tokens):
    x = normalised(tokens, norm.eps)
    torch.testing.assert_close(covariance(x), token_covariance(x))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('host', [True, False])
@pytest.mark.parametrize(
    'method, reflection',
    [(RALA, None), (RALA, WEAK), (MirrorAttention, WEAK), (MirrorAttention, dict(shared=False))],
)
def test_over_a_map_as_over_its_tokens(norm, tokens, method, reflection, host, bias):
    options = dict(gate=True, lepe_kernel=5, rope=True) if host else {}
    options |= dict(qkv_bias=bias, reflection=reflection)
    attention = method(CHANNELS, 2, **options).double().eval()
    check_over_a_map(attention, norm, tokens)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_maps_in_half_precision_stay_in_it(norm, tokens, dtype):
    attention = MirrorAttention(CHANNELS, 2).eval()
    maps = tokens.unflatten(1, (5, 7)).permute(0, 3, 1, 2).float()
    with torch.no_grad(), use_backend('graph'):
        expected = attention.on_map(maps, norm.float())
        out = attention.to(dtype).on_map(maps.to(dtype), norm.to(dtype))
    assert out.dtype == dtype
    assert (out - expected).norm() < 0.3 * expected.norm()


@pytest.mark.parametrize('shared', [True, False])
def test_wide_maps_are_reflected_by_rotations(monkeypatch, norm, tokens, shared):
    monkeypatch.setattr(graph, 'WIDE', CHANNELS)
    monkeypatch.setattr(graph, 'covariance', None)
    reflection = dict(WEAK, shared=shared)
    attention = MirrorAttention(CHANNELS, 2, reflection=reflection).double().eval()
    check_over_a_map(attention, norm, tokens)


@pytest.mark.parametrize('options', [dict(out_norm=True), dict(sr_ratio=2)])
def test_what_has_no_form_over_maps_goes_by_tokens(norm, tokens, options):
    attention = MirrorAttention(CHANNELS, 2, **options).double().eval()
    check_over_a_map(attention, norm, tokens)
