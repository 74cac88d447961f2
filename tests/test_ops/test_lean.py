"""The lean backend, whole and step by step, against the plain operators."""

import itertools

import pytest
import torch

from mirrorla_mm.ops import (
    lean,
    linear_attention,
    mirror_attention,
    rope_2d,
    token_weights,
    use_backend,
)
from mirrorla_mm.ops.rope import Rope

HW = (5, 7)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def output_and_gradients(backend, packed, theta, **options):
    """Of a fixed linear function of the output, with q, k, v strided views of ``packed``."""
    packed, theta = packed.clone().requires_grad_(), theta.clone().requires_grad_()
    q, k, v = packed.unflatten(-1, (3, -1)).permute(3, 0, 2, 1, 4)
    angles = theta if options['feature_map'] == 'mirror' else None
    with use_backend(backend):
        out = mirror_attention(q, k, v, angles, **options)
    probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    (out * probe).sum().backward()
    gradients = (packed.grad, theta.grad) if angles is not None else (packed.grad,)
    return out.detach(), *gradients


@pytest.mark.parametrize(
    ('feature_map', 'rank_augmented', 'hw_shape', 'variance_aware'),
    list(itertools.product(('mirror', 'elu', 'relu'), (True, False), (HW, None), (True, False))),
)
def test_lean_backend_has_the_reference_s_values_and_gradients(
    feature_map, rank_augmented, hw_shape, variance_aware
):
    packed, theta = randn(2, 35, 4, 24), randn(4, 4)
    options = dict(
        feature_map=feature_map,
        rank_augmented=rank_augmented,
        hw_shape=hw_shape,
        variance_aware=variance_aware,
        lam=0.7,
        alpha_max=1.1,
    )
    expected = output_and_gradients('torch', packed, theta, **options)
    results = output_and_gradients('lean', packed, theta, **options)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-9, atol=1e-11)


def test_lean_backend_unties_keys():
    q, k, v, theta, theta_k = *randn(3, 2, 2, 35, 8), *randn(2, 2, 4)
    outputs = []
    for backend in ('torch', 'lean'):
        with use_backend(backend):
            outputs.append(mirror_attention(q, k, v, theta, theta_k=theta_k))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_lean_backend_computes_half_precision_in_float32(dtype):
    q, k, v = (100 * randn(3, 1, 2, 35, 8)).to(dtype)
    theta = randn(2, 4).float()
    outputs = []
    for backend in ('torch', 'lean'):
        with use_backend(backend):
            outputs.append(mirror_attention(q, k, v, theta, hw_shape=HW))
    assert outputs[1].dtype == dtype
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize('feature_map', ['mirror', 'relu'])
def test_lean_backend_takes_channels_that_are_not_side_by_side(feature_map):
    q, k, v = randn(3, 1, 2, 6, 16)[..., ::2]
    theta = randn(2, 4) if feature_map == 'mirror' else None
    outputs = []
    for backend in ('torch', 'lean'):
        with use_backend(backend):
            outputs.append(
                mirror_attention(q, k, v, theta, feature_map=feature_map, hw_shape=(2, 3))
            )
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize('dim', [1, 5, 11])
def test_lean_backend_reflects_heads_of_odd_dimension(dim):
    packed, theta = randn(2, 35, 4, 3 * dim), randn(4, dim // 2)
    options = dict(feature_map='mirror', rank_augmented=False)
    expected = output_and_gradients('torch', packed, theta, **options)
    results = output_and_gradients('lean', packed, theta, **options)
    torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('dim', [4, 5])
@pytest.mark.parametrize('rank_augmented', [True, False])
@pytest.mark.parametrize('wide', ['theta', 'q and k'])
def test_lean_backend_takes_tensors_of_several_dtypes_as_the_reference_does(
    dim, rank_augmented, wide
):
    q, k, v = torch.rand(3, 2, 2, 7, dim)
    theta = torch.randn(2, dim // 2)
    if wide == 'theta':
        theta = theta.double()
    else:
        q, k = q.double(), k.double()
    out = []
    for name in ('torch', 'lean'):
        with use_backend(name):
            out.append(mirror_attention(q, k, v, theta, rank_augmented=rank_augmented))
    torch.testing.assert_close(*out)


def test_lean_backend_leaves_compilers_and_empty_maps_to_the_reference(monkeypatch):
    q, none = torch.rand(1, 1, 6, 4), torch.rand(1, 1, 0, 4)
    options = dict(feature_map='relu', rank_augmented=False)
    for some in ((none, q, q), (q, none, none)):
        assert mirror_attention(*some, **options).shape == some[0].shape
        with use_backend('lean'), pytest.raises(RuntimeError, match='there are no tokens'):
            mirror_attention(*some, **options)
    monkeypatch.setattr(lean, 'symbolic', lambda: True)
    with use_backend('lean'), pytest.raises(RuntimeError, match='a compiler or exporter'):
        mirror_attention(q, q, q, **options)


def test_all_zero_queries_give_zero_and_finite_gradients():
    q = torch.zeros(1, 1, 6, 4, requires_grad=True)
    k, v = torch.rand(2, 1, 1, 6, 4)
    with use_backend('lean'):
        out = mirror_attention(q, k, v, feature_map='relu', hw_shape=(2, 3))
    out.sum().backward()
    assert not out.any() and q.grad.isfinite().all()


@pytest.mark.parametrize('rank_augmented', [True, False])
def test_merged_states_are_linear_attention(rank_augmented):
    heads, dim = 2, 8
    q, k, v = randn(3, 1, heads, 35, dim)
    q, k = q.relu(), 30 * k.relu()  # Scores large enough that the running maximum matters.
    weight = token_weights(q, k) if rank_augmented else None
    expected = linear_attention(q, k, v, rope_2d(HW, dim, dtype=q.dtype), weight)

    rope = Rope(HW, dim, q)
    parts = [(slice(*rows), slice(7 * rows[0], 7 * rows[1])) for rows in ((0, 2), (2, 3), (3, 5))]
    query = lean.survey(q[:, :, tokens] for _, tokens in parts) if rank_augmented else None
    state = None
    for rows, tokens in parts:
        part = lean.gather(k[:, :, tokens], v[:, :, tokens], rope[rows], query)
        state = part if state is None else lean.merge(state, part)
    torch.testing.assert_close(lean.read(q, state, rope), expected)


def test_each_key_of_a_state_normalises_its_share_of_the_values():
    q, k, v = randn(3, 1, 2, 35, 8).abs()
    state = lean.gather(k, v, None)
    swapped = k.flip(-1).sum(-2, keepdim=True)
    both = state._replace(key=torch.cat((state.key, swapped), dim=-2))
    out = lean.read(q, both, None)
    first, second = (lean.read(q, state._replace(key=key), None) for key in (state.key, swapped))
    torch.testing.assert_close(out, torch.cat((first[..., :4], second[..., 4:]), dim=-1))


@torch.no_grad()
def test_a_state_read_in_bfloat16_keeps_its_normaliser():
    q, k, v = (torch.randn(2, 3, 35, 8).abs() for _ in range(3))
    state = lean.gather(k, v, None, query=lean.survey([q]))
    rounded = lean.read_in(state, torch.bfloat16)
    expected, out = lean.read(q, state, None), lean.read(q, rounded, None)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.03, atol=0)
    assert rounded.key is state.key and rounded.total is state.total
    # A numerator that bfloat16 holds exactly comes out to the last digit that it has.
    ones = lean.gather(torch.ones(1, 1, 300, 4), torch.ones(1, 1, 300, 4), None)
    assert (lean.read(torch.ones(1, 1, 1, 4), lean.read_in(ones, torch.bfloat16), None) == 1).all()
