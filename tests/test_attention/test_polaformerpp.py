import torch

from mirrorla_mm.attention import PolaPPAttention
from tests.test_attention.quadratic import (
    DIMS,
    HW,
    assert_same,
    divided,
    merge,
    projected,
    randomised,
    split,
)


def by_hand(attention, x):
    q, k, v, gate = projected(attention, x)
    q_pos, q_neg, k_pos, k_neg = (split(sign * t).relu() for t in (q, k) for sign in (1, -1))
    scales = [1 / (1 + (-s).exp()) for s in (attention.s1, attention.s2)]
    d = q_pos.shape[-1]
    kernels = []
    for first, second, scale in ((q_pos, q_neg, scales[0]), (q_neg, q_pos, scales[1])):
        with_pos = ((first * scale[..., :d]).exp() - 1) @ (k_pos.exp() - 1).mT
        with_neg = ((second * scale[..., d:]).exp() - 1) @ (k_neg.exp() - 1).mT
        kernels.append(divided(with_pos + with_neg))
    halves = split(v).chunk(2, dim=-1)
    out = merge(torch.cat([kernel @ half for kernel, half in zip(kernels, halves)], dim=-1))
    maps = v.mT.reshape(len(v), DIMS, *HW)
    local = torch.nn.functional.conv2d(
        maps, attention.lepe.weight, attention.lepe.bias, padding=2, groups=DIMS
    )
    return attention.proj((out + local.flatten(2).mT) * gate)


def test_is_two_kernels_of_exponentials():
    assert_same(randomised(PolaPPAttention), by_hand)


def test_huge_queries_and_keys_stay_finite():
    q, k, v = (1e4 * torch.randn(1, 2, 15, 8) for _ in range(3))
    out = PolaPPAttention(16, 2).attend(q, k, v, HW)
    assert torch.isfinite(out).all() and out.abs().max() <= 1.01 * v.abs().max()


def test_the_authors_name_of_the_projection_is_taken():
    attention = PolaPPAttention(16, 2)
    weights = {k.replace('qkv.', 'qkvg.'): v + 1 for k, v in attention.state_dict().items()}
    before = attention.qkv.weight.clone()
    attention.load_state_dict(weights)
    torch.testing.assert_close(attention.qkv.weight, before + 1)
