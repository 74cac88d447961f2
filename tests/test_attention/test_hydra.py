import pytest
import torch

from mirrorla_mm.attention import HydraAttention
from tests.test_attention.quadratic import (
    HW,
    assert_same,
    merge,
    projected,
    randomised,
    split,
    tokens,
    turned,
)


def by_hand(attention, x):
    q, k, v = projected(attention, x)
    q, k = (t / t.square().sum(-1, keepdim=True).sqrt() for t in (q, k))
    q, k = map(merge, turned(attention, split(q), split(k)))
    maps = torch.einsum('btc,bsc->bcts', q, k)
    return attention.proj(torch.einsum('bcts,bsc->btc', maps, v))


@pytest.mark.parametrize('rope', [False, True])
def test_is_a_map_per_channel(rope):
    assert_same(randomised(HydraAttention, rope=rope), by_hand)


def test_heads_do_not_matter():
    attention = randomised(HydraAttention)
    other = HydraAttention(16, 8).double()
    other.load_state_dict(attention.state_dict())
    x = tokens()
    torch.testing.assert_close(attention(x, HW), other(x, HW))
