import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.attention import FLattenAttention
from tests.test_attention.quadratic import (
    HW,
    WEAK,
    assert_same,
    divided,
    local,
    merge,
    projected,
    randomised,
    reflected,
    split,
    turned,
)


def focused(x, scale, power=3):
    x = (x.relu() + 1e-6) / scale
    cubed = x**power
    return cubed * x.norm(dim=-1, keepdim=True) / cubed.norm(dim=-1, keepdim=True)


def by_hand(attention, x):
    q, k, v = projected(attention, x)
    if not attention.rope:
        k = k + attention.position.flatten(1).t()
    if attention.reflection is not None:
        q, k = reflected(attention, q, k)
    scale = F.softplus(attention.scale)
    q, k = (split(focused(t, scale)) for t in (q, k))
    q_turn, k_turn = turned(attention, q, k)
    out = merge(divided(q_turn @ k_turn.mT, q @ k.mT) @ split(v))
    return attention.proj(out + local(attention, v))


@pytest.mark.parametrize('rope', [False, True])
@pytest.mark.parametrize('reflection', [None, WEAK], ids=['plain', 'reflected'])
def test_is_the_focused_kernel(reflection, rope):
    options = dict(grid_size=HW, reflection=reflection, rope=rope)
    assert_same(randomised(FLattenAttention, **options), by_hand)


def test_features_keep_their_length_and_turn_to_the_largest_axis():
    from mirrorla_mm.attention.flatten import focused_feature_map

    x = torch.rand(2, 1, 7, 8)
    features = focused_feature_map(x, torch.ones(1, 1, 8), 3)
    torch.testing.assert_close(features.norm(dim=-1), x.norm(dim=-1), rtol=1e-4, atol=1e-5)
    share = [t.amax(-1) / t.norm(dim=-1) for t in (x, features)]
    assert (share[1] >= share[0]).all()


@pytest.mark.parametrize('magnitude', [0.0, 1e-30, 1e15])
def test_powers_neither_underflow_nor_overflow(magnitude):
    from mirrorla_mm.attention.flatten import focused_feature_map

    x = torch.full((1, 1, 2, 4), magnitude, requires_grad=True)
    features = focused_feature_map(x, torch.full((1, 1, 4), 50.0), 3)
    features.sum().backward()
    assert features.isfinite().all() and x.grad.isfinite().all()


def test_table_is_made_for_14_rows_and_columns_unless_the_host_says_otherwise():
    assert FLattenAttention(16, 2).position.shape == (16, 14, 14)
    assert FLattenAttention(16, 2, grid_size=(6, 4), sr_ratio=2).position.shape == (16, 3, 2)


def test_rope_takes_the_place_of_the_table():
    assert FLattenAttention(16, 2, rope=True).position is None


def test_reduced_values_are_interpolated_along_the_sequence():
    attention = randomised(FLattenAttention, grid_size=(6, 4), sr_ratio=2)
    v = torch.randn(2, 6, 16, dtype=torch.float64)
    expected = F.interpolate(v.mT, size=24, mode='linear').unflatten(2, (6, 4))
    torch.testing.assert_close(attention.full_map(v, (6, 4)), expected)


def test_another_grid_interpolates_the_table():
    attention = randomised(FLattenAttention, grid_size=(2, 2))
    with torch.no_grad():
        attention.position.copy_(attention.position[:, :1, :1])  # Constant: nothing to interpolate.
    same = randomised(FLattenAttention, grid_size=HW)
    state = attention.state_dict()
    same.load_state_dict(state | {'position': state['position'][:, :1, :1].expand(-1, *HW)})
    x = torch.randn(1, 15, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x, HW), same(x, HW))
