import math

import pytest
import torch

from mirrorla_mm.attention import LinearAngularAttention
from tests.test_attention.quadratic import (
    assert_same,
    merge,
    projected,
    randomised,
    split,
    turned,
)


def by_hand(attention, x):
    q, k, v = map(split, projected(attention, x))
    q, k = turned(attention, q, k)  # A turn keeps lengths.
    cosine = (q @ k.mT) / (q.norm(dim=-1).unsqueeze(-1) * k.norm(dim=-1).unsqueeze(-2))
    out = (0.5 * torch.eye(x.shape[1], dtype=x.dtype) + cosine / math.pi) @ v
    out = out / out.norm(dim=-1, keepdim=True)
    return attention.proj(merge(out + along_the_tokens(attention.dwc.weight, v)))


def along_the_tokens(weight, v):
    """Each head has 9 taps that weigh a token and its 4 predecessors and successors."""
    tokens = v.shape[2]
    band = v.new_zeros(v.shape[1], tokens, tokens)
    for tap in range(9):
        for row in range(tokens):
            if 0 <= row + tap - 4 < tokens:
                band[:, row, row + tap - 4] = weight[:, 0, tap, 0]
    return band @ v


@pytest.mark.parametrize('rope', [False, True])
def test_is_half_identity_and_cosines_over_pi(rope):
    assert_same(randomised(LinearAngularAttention, rope=rope), by_hand)


def test_first_order_of_the_angular_kernel():
    cosine = torch.linspace(-0.1, 0.1, 21, dtype=torch.float64)
    angular = 1 - torch.arccos(cosine) / math.pi
    torch.testing.assert_close(0.5 + cosine / math.pi, angular, atol=1e-4, rtol=0)
