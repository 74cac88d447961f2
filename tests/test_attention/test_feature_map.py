import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.attention import (
    RALA,
    ELUAttention,
    MirrorAttention,
    ReLUAttention,
    SoftmaxAttention,
)
from mirrorla_mm.ops import apply_rope, rope_2d
from mirrorla_mm.registry import build_attention
from tests.test_attention.quadratic import WEAK

HW = (3, 5)
METHODS = [RALA, ELUAttention, MirrorAttention, ReLUAttention, SoftmaxAttention]
HOST = dict(gate=True, lepe_kernel=5, rope=True)


def build(cls, **kwargs):
    return cls(16, 2, **kwargs).double().eval()


def by_hand(attention, x):
    """The host's formula with the attention matrix written out, from the module's own weights."""
    q, k, v, gate = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(4, dim=-1)
    reflection = getattr(attention, 'reflection', None)
    if reflection is not None and reflection.u is not None:
        unit = reflection.u / reflection.u.norm()
        mirror = torch.eye(16).double() - 2 * torch.outer(unit, unit)
        q, k = q @ mirror, k @ mirror
    heads = [t.view(len(x), -1, 2, 8).transpose(1, 2) for t in (q, k, v)]
    out = matrix(attention, reflection, *heads).transpose(1, 2).reshape(x.shape)
    lepe = F.conv2d(
        v.transpose(1, 2).reshape(len(x), 16, *HW),
        attention.lepe.weight,
        attention.lepe.bias,
        padding=2,
        groups=16,
    )
    out = (out + lepe.flatten(2).transpose(1, 2)) * gate
    return F.linear(out, attention.proj.weight, attention.proj.bias)


def matrix(attention, reflection, q, k, v):
    angle = rope_2d(HW, 8, dtype=torch.float64)
    if isinstance(attention, SoftmaxAttention):
        scores = apply_rope(q, angle) @ apply_rope(k, angle).mT / 8**0.5
        return scores.softmax(-1) @ v
    if reflection is not None:
        q, k = reflection(q, k)
    if isinstance(attention, (RALA, ELUAttention)):
        q, k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    else:
        q, k = q.relu(), k.relu()
    weight = torch.full_like(k[..., 0], 1 / k.shape[2])
    if isinstance(attention, (RALA, MirrorAttention)):
        weight = (torch.einsum('bhd,bhnd->bhn', q.mean(2), k) / 8**0.5).softmax(-1)
    numerator = (apply_rope(q, angle) @ apply_rope(k, angle).mT) * weight[:, :, None]
    return numerator @ v / ((q @ k.mT * weight[:, :, None]).sum(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize('cls', METHODS)
def test_module_is_its_formula_with_the_matrix_written_out(cls):
    attention = build(cls, **HOST)
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x, HW), by_hand(attention, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('options', [{}, WEAK], ids=['defaults', 'weak'])
@pytest.mark.parametrize('cls', [RALA, ReLUAttention])
def test_reflection_is_an_insert_before_the_feature_map(cls, options):
    attention = build(cls, reflection=options, **HOST)
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x, HW), by_hand(attention, x), rtol=1e-6, atol=1e-8)
    plain = build(cls, **HOST)
    plain.load_state_dict(attention.state_dict(), strict=False)
    assert not torch.allclose(plain(x, HW), attention(x, HW))


@pytest.mark.parametrize('cls', METHODS)
@pytest.mark.parametrize('options', [{}, HOST], ids=['bare', 'ravlt host'])
def test_every_parameter_learns(cls, options):
    attention = cls(16, 2, **options)
    attention(torch.randn(2, 15, 16), HW).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
    assert all(
        p.grad.abs().sum() > 0 for p in attention.parameters() if p is not attention.qkv.bias
    )


@pytest.mark.parametrize('cls', METHODS)
def test_images_of_a_batch_do_not_mix(cls):
    attention = build(cls, **HOST)
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x, HW)[1:], attention(x[1:], HW))


def test_built_by_name_whatever_the_default_scope():
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        attention = build_attention(
            dict(type='MirrorAttention', gate=False), embed_dims=16, num_heads=2, gate=True
        )
    assert isinstance(attention, MirrorAttention)
    assert attention.qkv.out_features == 3 * 16


def test_mistakes_are_explained():
    with pytest.raises(
        ValueError, match=r'embed_dims \(16\) needs to be a multiple of num_heads \(3\)'
    ):
        RALA(16, 3)
    with pytest.raises(
        ValueError, match='RoPE needs a head dimension that is a multiple of 4, got 6'
    ):
        SoftmaxAttention(12, 2, rope=True)
    with pytest.raises(ValueError, match='on one grid: it cannot be used with sr_ratio=2'):
        RALA(16, 2, rope=True, sr_ratio=2)
    with pytest.raises(TypeError, match="attn_cfg needs to be a dict with a 'type'"):
        build_attention('RALA')
