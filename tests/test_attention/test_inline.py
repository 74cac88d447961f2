import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.attention import InLineAttention
from tests.test_attention.quadratic import (
    DIMS,
    HEADS,
    HW,
    assert_same,
    merge,
    projected,
    randomised,
    split,
    tokens,
    turned,
)


def matrix(q, k):
    scores = q @ k.mT / (DIMS // HEADS) ** 0.5
    return (scores - scores.mean(-1, keepdim=True) + 1) / scores.shape[-1]


def by_hand(attention, x):
    q, k, v = projected(attention, x)
    out = merge(matrix(*turned(attention, split(q), split(k))) @ split(v))
    return attention.proj(out + torch.stack([local(attention, *pair) for pair in zip(x, v)]))


def local(attention, x, v):
    """One image's own 3x3 convolution, its weights predicted head by head."""
    hidden, out = attention.residual[0], attention.residual[2]
    weights = []
    for head in range(HEADS):
        rows, nine = slice(8 * head, 8 * head + 8), slice(72 * head, 72 * head + 72)
        h = F.gelu(hidden.weight[rows, :, 0] @ x.mean(0)[rows] + hidden.bias[rows])
        weights.append(out.weight[nine, :, 0] @ h + out.bias[nine])
    weights = torch.cat(weights).view(DIMS, 1, 3, 3)
    return F.conv2d(v.t().reshape(1, DIMS, *HW), weights, padding=1, groups=DIMS)[0].flatten(1).t()


@pytest.mark.parametrize('rope', [False, True])
def test_is_scores_made_to_sum_to_one_by_subtraction(rope):
    assert_same(randomised(InLineAttention, rope=rope), by_hand)


def test_rows_of_the_map_sum_to_one():
    attention = randomised(InLineAttention)
    q, k = (torch.randn(1, 2, 15, 8, dtype=torch.float64) for _ in range(2))
    out = attention.attend(q, k, torch.ones_like(q), HW)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_different_queries_keep_different_maps():
    # Queries that point the same way have one map under division, and two here (Sec. 4 there).
    attention = randomised(InLineAttention)
    q, k, v = (split(tokens().detach()) for _ in range(3))
    assert not torch.allclose(attention.attend(q, k, v, HW), attention.attend(2 * q, k, v, HW))
