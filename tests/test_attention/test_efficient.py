import pytest
import torch

from mirrorla_mm.attention import EfficientAttention
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
    q, k, v = map(split, projected(attention, x))
    q, k = q.exp() / q.exp().sum(-1, keepdim=True), k.exp() / k.exp().sum(-2, keepdim=True)
    q, k = turned(attention, q, k)
    return attention.proj(merge(q @ k.mT @ v))


@pytest.mark.parametrize('rope', [False, True])
def test_is_the_product_of_two_softmaxes(rope):
    assert_same(randomised(EfficientAttention, rope=rope), by_hand)


def test_rows_of_the_map_sum_to_one():
    attention = randomised(EfficientAttention)
    with torch.no_grad():
        attention.qkv.weight[32:] = 0
    out = attention(tokens(), HW)
    torch.testing.assert_close(out, attention.proj(attention.qkv.bias[32:]).expand_as(out))
