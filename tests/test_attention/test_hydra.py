import torch

from mirrorla_mm.attention import HydraAttention
from tests.test_attention.quadratic import HW, assert_same, projected, randomised, tokens


def by_hand(attention, x):
    q, k, v = projected(attention, x)
    q, k = (t / t.square().sum(-1, keepdim=True).sqrt() for t in (q, k))
    maps = torch.einsum('btc,bsc->bcts', q, k)
    return attention.proj(torch.einsum('bcts,bsc->btc', maps, v))


def test_is_a_map_per_channel():
    assert_same(randomised(HydraAttention), by_hand)


def test_heads_do_not_matter():
    attention = randomised(HydraAttention)
    other = HydraAttention(16, 8).double()
    other.load_state_dict(attention.state_dict())
    x = tokens()
    torch.testing.assert_close(attention(x, HW), other(x, HW))
