import torch
import torch.nn.functional as F

from mirrorla_mm.attention import NaLaAttention
from tests.test_attention.quadratic import (
    DIMS,
    HW,
    assert_same,
    divided,
    merge,
    projected,
    randomised,
    split,
    turned,
)


def by_hand(attention, x):
    q, k, v, gate = projected(attention, x)
    parts = []
    for sign in (1, -1):
        norm = split(q).norm(dim=-1, keepdim=True)
        parts.append(((sign * split(q)).relu() / norm) ** (1.5 + 3 * torch.tanh(norm)))
        parts.append((sign * split(k)).relu() ** 3)
    q_pos, k_pos, q_neg, k_neg = parts
    q_turn, k_turn, q_back, k_back = turned(attention, *parts)
    scores = q_turn @ k_turn.mT + q_back @ k_back.mT
    kernel = q_pos @ k_pos.mT + q_neg @ k_neg.mT
    out = merge(divided(scores, kernel) @ split(v))
    maps = v.transpose(1, 2).reshape(len(v), DIMS, *HW)
    lepe = F.conv2d(maps, attention.lepe.weight, attention.lepe.bias, padding=2, groups=DIMS)
    out = out + lepe.flatten(2).transpose(1, 2)
    out = F.layer_norm(out, (DIMS,), attention.out_norm.weight, attention.out_norm.bias)
    return attention.proj(out * gate * torch.sigmoid(gate))


def test_is_the_norm_aware_kernel_with_and_without_rope():
    assert_same(randomised(NaLaAttention), by_hand)
    assert_same(randomised(NaLaAttention, rope=True), by_hand)


def test_longer_queries_attend_more_sharply():
    attention = randomised(NaLaAttention)
    q, k = (torch.randn(1, 2, 15, 8, dtype=torch.float64) for _ in range(2))
    identity = torch.eye(15, dtype=torch.float64).expand(1, 2, -1, -1)
    entropy = []
    for length in (0.1, 1.0, 3.0):
        rows = attention.attend(F.normalize(q, dim=-1) * length, k, identity, HW)
        entropy.append(torch.special.entr(rows).sum(-1).mean())
    assert entropy[0] > entropy[1] > entropy[2]


def test_a_zero_query_gives_zero_and_finite_gradients():
    attention = randomised(NaLaAttention)
    q, k, v = (torch.randn(1, 2, 15, 8, dtype=torch.float64) for _ in range(3))
    q[:, :, 3] = 0
    out = attention.attend(q.requires_grad_(), k, v, HW)
    assert out[:, :, 3].count_nonzero() == 0
    out.sum().backward()
    assert q.grad.isfinite().all()


def test_reproduces_the_authors_module(oracle):
    reference = oracle('nalaformer_attention')
    names = {'qkvg': 'qkv', 'out_proj': 'proj', 'ln': 'out_norm', 'lepe': 'lepe'}
    attention = NaLaAttention(32, 2, rope=True)
    attention.load_state_dict(
        {
            f'{names[key.split(".")[0]]}.{key.split(".")[1]}': value
            for key, value in reference['state_dict'].items()
        }
    )
    for x, y in zip(reference['x'], reference['y']):
        out = attention(x.flatten(2).transpose(1, 2), x.shape[-2:])
        torch.testing.assert_close(out.transpose(1, 2).reshape(y.shape), y, rtol=0, atol=1e-5)
