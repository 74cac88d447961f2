import math

import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.attention import Reflection
from mirrorla_mm.ops import cross_head_reflection, reflect


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shared', [True, False])
def test_folding_equals_reflecting_what_is_projected(bias, shared):
    reflection = Reflection(12, 3, shared=shared).double()
    weight = torch.randn(48, 12, dtype=torch.float64)
    offset = torch.randn(48, dtype=torch.float64) if bias else None
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v, gate = F.linear(x, *reflection.fold(weight, offset)).chunk(4, dim=-1)
    plain_q, plain_k, plain_v, plain_gate = F.linear(x, weight, offset).chunk(4, dim=-1)
    torch.testing.assert_close(q, cross_head_reflection(plain_q, reflection.u))
    u_k = reflection.u if shared else reflection.u_k
    torch.testing.assert_close(k, cross_head_reflection(plain_k, u_k))
    torch.testing.assert_close((v, gate), (plain_v, plain_gate))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shared', [True, False])
def test_fixed_angles_fold_into_the_projection(bias, shared):
    reflection = Reflection(12, 3, shared=shared, variance_aware=False).double()
    weight = torch.randn(36, 12, dtype=torch.float64)
    offset = torch.randn(36, dtype=torch.float64) if bias else None
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    ours = F.linear(x, *reflection.fold(weight, offset)).chunk(3, dim=-1)
    q, k, v = F.linear(x, weight, offset).chunk(3, dim=-1)
    q = cross_head_reflection(q, reflection.u)
    k = cross_head_reflection(k, reflection.u if shared else reflection.u_k)
    q, k = reflection(*(t.unflatten(-1, (3, -1)).transpose(1, 2) for t in (q, k)))
    torch.testing.assert_close(ours[0], q.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours[1], k.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours[2], v)


@pytest.mark.parametrize('variance_aware', [True, False])
@pytest.mark.parametrize('cross_head', [True, False])
def test_all_reflections_are_the_two_one_after_the_other(variance_aware, cross_head):
    reflection = Reflection(
        12, 3, shared=False, variance_aware=variance_aware, cross_head=cross_head
    ).double()
    q, k = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64).unbind(0)
    across = q, k
    if cross_head:
        flat = (x.transpose(1, 2).flatten(2) for x in (q, k))
        across = (
            cross_head_reflection(x, u).unflatten(-1, (3, 4)).transpose(1, 2)
            for x, u in zip(flat, (reflection.u, reflection.u_k))
        )
    expected = reflection(*across)
    torch.testing.assert_close(reflection.reflect_all(q), expected[0])
    torch.testing.assert_close(reflection.reflect_all(k, key=True), expected[1])


def test_defaults_are_the_papers():
    assert Reflection(12, 3).options == dict(lam=1.0, alpha_max=math.pi / 2, variance_aware=True)


def test_shared_reflection_without_variance_keeps_similarities():
    reflection = Reflection(12, 3, variance_aware=False).double()
    q, k = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64).unbind(0)
    reflected_q, reflected_k = reflection(q, k)
    torch.testing.assert_close(reflected_q @ reflected_k.mT, q @ k.mT)


def test_untied_reflections_are_separate_parameters():
    names = {name for name, _ in Reflection(12, 3, shared=False).named_parameters()}
    assert names == {'u', 'u_k', 'theta', 'theta_k'}
    assert {name for name, _ in Reflection(12, 3).named_parameters()} == {'u', 'theta'}


def test_switches_of_table_8():
    off = Reflection(12, 3, cross_head=False, variance_aware=False, lam=0.5, alpha_max=0.1)
    assert off.u is None
    weight = torch.randn(36, 12)
    assert Reflection(12, 3, cross_head=False).fold(weight, None)[0] is weight
    q = torch.randn(1, 3, 7, 4)
    torch.testing.assert_close(off(q, q)[0], reflect(q, off.theta, variance_aware=False))
    strong = Reflection(12, 3, lam=0.5, alpha_max=0.1)
    torch.testing.assert_close(
        strong(q, q)[1], reflect(q, strong.theta, lam=0.5, alpha_max=0.1, variance_aware=True)
    )


def test_training_never_reflects_tokens_across_heads(monkeypatch):
    """The cross-head reflection is folded into weight and bias: C^2 instead of N C."""
    from mirrorla_mm.attention import MirrorAttention, reflection

    seen = []
    original = reflection.reflect_along
    monkeypatch.setattr(
        reflection,
        'reflect_along',
        lambda x, unit: seen.append(x.shape) or original(x, unit),
    )
    attention = MirrorAttention(16, 2, rope=True).train()
    attention(torch.randn(2, 35, 16), (5, 7)).square().sum().backward()
    assert set(seen) == {(16,), (16, 16)}  # bias and weight
    assert attention.reflection.u.grad.abs().sum() > 0
