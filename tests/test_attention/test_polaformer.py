import pytest
import torch

from mirrorla_mm.attention import PolaAttention
from tests.test_attention.quadratic import (
    HW,
    assert_same,
    divided,
    local,
    merge,
    projected,
    randomised,
    reflected,
    split,
)


def by_hand(attention, x):
    q, k, v, gate = projected(attention, x)
    scale = (1 + attention.scale.exp()).log()
    q, k = q / scale, (k + attention.position.flatten(1).t()) / scale
    if attention.reflection is not None:
        q, k = reflected(attention, q, k)
    power = 1 + attention.alpha / (1 + (-attention.power).exp())
    q_pos, q_neg, k_pos, k_neg = (
        split(sign * t).relu() ** power for t in (q, k) for sign in (1, -1)
    )
    equal = q_pos @ k_pos.mT + q_neg @ k_neg.mT
    opposite = q_neg @ k_pos.mT + q_pos @ k_neg.mT
    first, second = split(v).chunk(2, dim=-1)
    out = merge(torch.cat((divided(equal) @ first, divided(opposite) @ second), dim=-1))
    return attention.proj((out + local(attention, v)) * gate)


@pytest.mark.parametrize('reflection', [None, {}], ids=['plain', 'reflected'])
def test_is_two_kernels_of_equal_and_opposite_signs(reflection):
    assert_same(randomised(PolaAttention, grid_size=HW, reflection=reflection), by_hand)


def test_signs_of_all_queries_swap_the_halves():
    attention = randomised(PolaAttention, rope=True)
    q, k, v = (torch.randn(1, 2, 15, 8, dtype=torch.float64) for _ in range(3))
    v = torch.cat((v[..., :4],) * 2, dim=-1)
    out, opposite = attention.attend(q, k, v, HW), attention.attend(-q, k, v, HW)
    torch.testing.assert_close(out[..., :4], opposite[..., 4:])


def test_heads_may_be_of_one_channel():
    attention, x = PolaAttention(2, 2), torch.randn(1, 15, 2)
    assert attention(x, HW).isfinite().all()


def test_heads_of_odd_dimension_give_equal_signs_the_larger_half():
    attention = PolaAttention(6, 2, grid_size=HW).double()
    q, k = (torch.randn(1, 2, 15, 3, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 2, 15, 1, dtype=torch.float64).expand(-1, -1, -1, 3)
    out, opposite = attention.attend(q, k, v, HW), attention.attend(-q, k, v, HW)
    torch.testing.assert_close(out[..., 0], out[..., 1])
    torch.testing.assert_close(out[..., 2], opposite[..., 0])
    torch.testing.assert_close(opposite[..., 2], out[..., 0])
    assert not torch.allclose(out[..., 2], out[..., 0])


def test_zero_queries_give_zero():
    attention = randomised(PolaAttention, rope=True)
    q, k, v = (torch.randn(1, 2, 15, 8, dtype=torch.float64) for _ in range(3))
    assert attention.attend(torch.zeros_like(q), k, v, HW).count_nonzero() == 0


def test_powers_lie_below_the_authors_five_by_default():
    assert PolaAttention(16, 2).alpha == 4
