import pytest
import torch

from mirrorla_mm.analysis.compare import registered_methods
from mirrorla_mm.attention import state
from mirrorla_mm.attention.state import StateAttention
from mirrorla_mm.registry import MODELS
from tests.test_attention.quadratic import DIMS, randomised

METHODS = [name for name in registered_methods() if issubclass(MODELS.get(name), StateAttention)]
HOSTS = [{}, dict(gate=True, lepe_kernel=5, rope=True)]
HW = (7, 9)


@pytest.fixture
def short_strips(monkeypatch):
    """Strips of five tokens for the pictures here, and how many there were."""
    monkeypatch.setattr(state, 'STRIP_BYTES', 5 * 4 * 2 * DIMS * 8)
    counts = []
    cut = state.token_strips

    def count(x):
        strips = cut(x)
        counts.append(len(strips))
        return strips

    monkeypatch.setattr(state, 'token_strips', count)
    return counts


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('options', HOSTS, ids=['bare', 'ravlt host'])
def test_strips_give_what_the_whole_map_gives(method, options, short_strips):
    attention = randomised(MODELS.get(method), grid_size=(5, 4), **options)
    x = torch.randn(2, 63, DIMS, dtype=torch.float64)
    expected = attention(x, HW)
    assert not short_strips
    with torch.no_grad():
        out = attention(x, HW)
    assert short_strips == [13] or not attention.strips(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_all_but_efficient_attention_with_rope_work_in_strips(short_strips):
    whole = []
    for method in METHODS:
        for options in HOSTS:
            attention = randomised(MODELS.get(method), **options)
            with torch.no_grad():
                if not attention.strips(torch.zeros(2, 63, DIMS)):
                    whole.append((method, options.get('rope', False)))
    assert whole == [('EfficientAttention', True)]


def test_a_map_of_one_strip_stays_whole(short_strips):
    attention = randomised(MODELS.get('HydraAttention'))
    with torch.no_grad():
        assert not attention.strips(torch.empty(2, 5, DIMS, dtype=torch.float64))
        assert attention.strips(torch.empty(2, 6, DIMS, dtype=torch.float64))


def test_strips_of_very_different_keys_neither_overflow_nor_vanish(short_strips):
    attention = randomised(MODELS.get('EfficientAttention'))
    x = torch.randn(1, 63, DIMS, dtype=torch.float64) * torch.linspace(0, 900, 63).view(1, -1, 1)
    expected = attention(x, HW)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, HW), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize('method', ['FLattenAttention', 'PolaAttention'])
def test_reflections_see_all_tokens(method, short_strips):
    attention = randomised(MODELS.get(method), reflection={})
    x = torch.randn(2, 63, DIMS, dtype=torch.float64)
    expected = attention(x, HW)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, HW), expected)
    assert not short_strips


def test_strips_hold_every_token_once():
    for tokens in (1, 5, 4096):
        strips = state.token_strips(torch.empty(3, tokens, 1024, device='meta'))
        assert [i for strip in strips for i in range(tokens)[strip]] == list(range(tokens))
