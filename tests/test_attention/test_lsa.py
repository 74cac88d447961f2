from mirrorla_mm.attention import LSA
from tests.test_attention.quadratic import assert_same, merge, projected, randomised, split


def by_hand(attention, x):
    q, k, v = map(split, projected(attention, x))
    weights = k.exp() / k.exp().sum(-2, keepdim=True)
    return attention.proj(merge(q @ weights.mT @ v / q.shape[-1] ** 0.5))


def test_queries_are_scaled_and_keys_are_a_softmax_over_the_tokens():
    assert_same(randomised(LSA), by_hand)
