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
)


def matrix(q, k):
    return q.exp() / q.exp().sum(-1, keepdim=True) @ (k.exp() / k.exp().sum(-2, keepdim=True)).mT


def by_hand(attention, x):
    q, k, v = map(split, projected(attention, x))
    return attention.proj(merge(matrix(q, k) @ v))


def test_is_the_product_of_two_softmaxes():
    assert_same(randomised(EfficientAttention), by_hand)


def test_rows_of_the_map_sum_to_one():
    attention = randomised(EfficientAttention)
    with torch.no_grad():
        attention.qkv.weight[32:] = 0
    out = attention(tokens(), HW)
    torch.testing.assert_close(out, attention.proj(attention.qkv.bias[32:]).expand_as(out))
