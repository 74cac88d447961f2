import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mirrorla_mm.ops import (
    elu_feature_map,
    linear_attention,
    mirror_attention,
    mirror_attention_reference,
    mirror_feature_map,
    rank_augmented_attention,
    token_weights,
)
from tests.test_ops.algorithm1 import mirror_map, quadratic_attention

DOUBLE = dict(dtype=torch.float64)
HW = (3, 4)


def qkv(batch=2, heads=2, tokens=12, head_dim=8, **kwargs):
    return torch.randn(3, batch, heads, tokens, head_dim, **{**DOUBLE, **kwargs}).unbind(0)


def features(x, feature_map, theta):
    if feature_map == 'mirror':
        flat = x.transpose(1, 2).flatten(2).numpy()
        return np.stack([mirror_map(row, None, theta.numpy()) for row in flat])
    return (elu_feature_map(x) if feature_map == 'elu' else F.relu(x)).numpy()


@pytest.mark.parametrize('feature_map', ['mirror', 'elu', 'relu'])
@pytest.mark.parametrize('rank_augmented', [True, False])
@pytest.mark.parametrize('hw_shape', [HW, None])
def test_operator_is_its_quadratic_form(feature_map, rank_augmented, hw_shape):
    q, k, v = qkv()
    theta = torch.randn(2, 4, **DOUBLE) if feature_map == 'mirror' else None
    ours = mirror_attention(
        q, k, v, theta, feature_map=feature_map, rank_augmented=rank_augmented, hw_shape=hw_shape
    )
    phi_q, phi_k = features(q, feature_map, theta), features(k, feature_map, theta)
    for b in range(2):
        for h in range(2):
            expected = quadratic_attention(
                phi_q[b, h], phi_k[b, h], v[b, h].numpy(), rank_augmented, hw_shape
            )
            np.testing.assert_allclose(ours[b, h].numpy(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('feature_map', ['mirror', 'elu'])
@pytest.mark.parametrize('rank_augmented', [True, False])
def test_gradients_agree_with_finite_differences(feature_map, rank_augmented):
    q, k, v = (t.requires_grad_() for t in qkv(batch=1, tokens=6))
    theta = torch.randn(2, 4, **DOUBLE, requires_grad=True)

    def operator(q, k, v, theta):
        theta = theta if feature_map == 'mirror' else None
        return mirror_attention(
            q, k, v, theta, feature_map=feature_map, rank_augmented=rank_augmented, hw_shape=(2, 3)
        )

    assert gradcheck(operator, (q, k, v, theta), atol=1e-4)


def test_weights_are_a_softmax_of_the_mean_query():
    q, k, _ = (F.relu(t) for t in qkv())
    expected = F.softmax(torch.einsum('bhd,bhnd->bhn', q.mean(2), k) / 8**0.5, dim=-1)
    torch.testing.assert_close(token_weights(q, k), expected)


def test_rank_augmented_state_is_the_published_one():
    q, k, v = (t.abs() for t in qkv())
    tokens = k.shape[2]
    weight = token_weights(q, k).unsqueeze(-1)
    keys = k * weight * tokens
    z = 1 / (q @ keys.mean(2, keepdim=True).mT + 1e-6)
    expected = q @ (keys.mT @ v / tokens) * z
    torch.testing.assert_close(rank_augmented_attention(q, k, v), expected)


def test_order_of_keys_does_not_matter_without_position_embedding():
    q, k, v = (t.abs() for t in qkv())
    shuffle = torch.randperm(k.shape[2])
    torch.testing.assert_close(
        linear_attention(q, k[:, :, shuffle], v[:, :, shuffle]), linear_attention(q, k, v)
    )


def test_one_token_is_its_own_value_but_for_the_normalisers_epsilon():
    q, k, v = (t.abs() for t in qkv(tokens=1))
    similarity = (q * k).sum(-1, keepdim=True)
    torch.testing.assert_close(
        linear_attention(q, k, v), v * similarity / (similarity + 1e-6), rtol=1e-12, atol=0
    )


def test_autocast_changes_nothing_in_the_plain_operators():
    q, k, v = (t.abs() for t in qkv(dtype=torch.float32))
    theta = torch.randn(2, 4)

    def outputs():
        reference = mirror_attention_reference(q, k, v, theta)
        return token_weights(q, k), linear_attention(q, k, v), reference

    expected = outputs()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert all(map(torch.equal, outputs(), expected))


def test_output_is_a_convex_combination_of_values():
    q, k, v = (t.abs() + 0.1 for t in qkv())
    out = rank_augmented_attention(q, k, v)
    assert (out <= v.amax(2, keepdim=True)).all()
    ones = rank_augmented_attention(q, k, torch.ones_like(v))
    torch.testing.assert_close(ones, torch.ones_like(v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_all_zero_query_gives_zero_and_finite_gradients(dtype):
    q, k, v = (t.requires_grad_() for t in qkv(dtype=dtype))
    dead = torch.zeros_like(q)
    dead[:, :, 3:] = 1
    out = mirror_attention(q * dead, k, v, feature_map='relu', hw_shape=HW)
    assert out[:, :, :3].abs().max() == 0
    out.float().sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('feature_map', ['mirror', 'elu', 'relu'])
def test_half_precision_neither_overflows_nor_drifts(dtype, feature_map):
    q, k, v = qkv(tokens=4096, dtype=torch.float32)
    q, k = 30 * q, 30 * k
    theta = torch.randn(2, 4) if feature_map == 'mirror' else None
    options = dict(feature_map=feature_map, hw_shape=(64, 64))
    half = [t.to(dtype) for t in (q, k, v)]
    expected = mirror_attention(*(t.double() for t in half), theta, **options)
    # A nearly dead query divides by almost nothing: float16 saturates there instead of overflowing.
    expected = expected.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    with torch.autocast('cpu', dtype=dtype):
        out = mirror_attention(*half, theta, **options)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert (out.double() - expected).norm() / expected.norm() < 5e-3


def test_any_strides_one_token_and_empty_batch():
    theta = torch.randn(2, 4, **DOUBLE)
    packed = torch.randn(2, 12, 4, 2, 8, **DOUBLE).permute(2, 0, 3, 1, 4)
    q, k, v, _ = packed.unbind(0)
    assert not q.is_contiguous()
    torch.testing.assert_close(
        mirror_attention(q, k, v, theta, hw_shape=HW),
        mirror_attention(q.contiguous(), k.contiguous(), v.contiguous(), theta, hw_shape=HW),
    )
    one = mirror_attention(*(t[:, :, :1] for t in (q, k, v)), theta, hw_shape=(1, 1))
    assert one.isfinite().all()
    none = mirror_attention(*(t[:0] for t in (q, k, v)), theta, hw_shape=HW)
    assert none.shape == (0, 2, 12, 8)


def test_untied_angles_reach_the_keys_alone():
    q, k, v = qkv()
    theta, theta_k = torch.randn(2, 2, 4, **DOUBLE).unbind(0)
    phi_q, phi_k = mirror_feature_map(q, theta), mirror_feature_map(k, theta_k)
    torch.testing.assert_close(
        mirror_attention(q, k, v, theta, theta_k=theta_k), rank_augmented_attention(phi_q, phi_k, v)
    )


def test_mistakes_are_explained():
    q, k, v = qkv()
    with pytest.raises(
        ValueError, match="Unknown feature map 'gelu'; choose from mirror, elu, relu"
    ):
        mirror_attention(q, k, v, feature_map='gelu')
    with pytest.raises(ValueError, match=r'needs theta of shape \(2, 4\), got none'):
        mirror_attention(q, k, v)
    with pytest.raises(ValueError, match=r'needs theta_k of shape \(2, 4\), got \(2, 3\)'):
        mirror_attention(q, k, v, torch.zeros(2, 4), theta_k=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r'hw_shape \(3, 5\) does not hold 12 tokens'):
        mirror_attention(q, k, v, feature_map='elu', hw_shape=(3, 5))
