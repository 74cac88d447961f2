"""The lean backend, folded projections and streamed inference against the plain operators."""

import itertools

import pytest
import torch
from torch import nn

from mirrorla_mm.ops import (
    apply_rope,
    block_variance,
    cross_head_reflection,
    linear_attention,
    mirror_attention,
    reflect,
    rope_2d,
    token_weights,
    use_backend,
)
from mirrorla_mm.ops.folding import (
    fold_block_reflection,
    fold_cross_head_reflection,
    token_covariance,
)
from mirrorla_mm.ops.rotation import rotate, rotation
from mirrorla_mm.ops.streaming import StreamedState, conv_rows, input_rows, row_strips, streams

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


def test_lean_backend_leaves_unpaired_channels_to_the_reference():
    q = randn(1, 1, 4, 8)[..., ::2]
    with use_backend('lean'), pytest.raises(RuntimeError, match='side by side'):
        mirror_attention(q, q, q, feature_map='relu')
    assert mirror_attention(q, q, q, feature_map='relu').isfinite().all()


def test_all_zero_queries_give_zero_and_finite_gradients():
    q = torch.zeros(1, 1, 6, 4, requires_grad=True)
    k, v = torch.rand(2, 1, 1, 6, 4)
    with use_backend('lean'):
        out = mirror_attention(q, k, v, feature_map='relu', hw_shape=(2, 3))
    out.sum().backward()
    assert not out.any() and q.grad.isfinite().all()


def test_rotation_is_rope():
    x = randn(2, 3, 35, 8)
    torch.testing.assert_close(rotate(x, HW), apply_rope(x, rope_2d(HW, 8, dtype=x.dtype)))
    rows = rotation(HW, x, (1, 4))
    torch.testing.assert_close(rows, rotation(HW, x)[7:28])


def test_tables_made_in_inference_mode_serve_training():
    hw_shape = (3, 11)  # A size of its own, so that the table is made here.
    with torch.inference_mode():
        rotate(torch.rand(1, 1, 33, 4), hw_shape)
    x = torch.rand(1, 1, 33, 4, requires_grad=True)
    rotate(x, hw_shape).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('variance_aware', [True, False])
@pytest.mark.parametrize('with_bias', [True, False])
def test_folded_projection_reflects(variance_aware, with_bias):
    heads, dim, channels = 3, 4, 10
    x = 3 + randn(2, 50, channels)  # Off centre: a covariance is not a mean of squares.
    weight, theta, u = randn(heads * dim, channels), randn(heads, dim // 2), randn(heads * dim)
    bias = randn(heads * dim) if with_bias else None
    options = dict(variance_aware=variance_aware, lam=0.6, alpha_max=2.0)

    projected = nn.functional.linear(x, weight, bias)
    split = cross_head_reflection(projected, u).unflatten(-1, (heads, dim)).transpose(1, 2)
    expected = reflect(split, theta, **options).transpose(1, 2).flatten(2)

    weight = fold_cross_head_reflection(weight, u)
    bias = None if bias is None else cross_head_reflection(bias, u)
    folded, shift = fold_block_reflection(weight, bias, theta, token_covariance(x), **options)
    torch.testing.assert_close(torch.baddbmm(shift, x, folded), expected)


def test_variance_from_covariance_survives_a_constant_picture():
    x = torch.full((1, 9, 4), 1e3)
    folded, shift = fold_block_reflection(
        torch.randn(4, 4), None, torch.randn(1, 2), token_covariance(x)
    )
    assert folded.isfinite().all() and shift.isfinite().all()
    assert block_variance(x.unsqueeze(1)).abs().max() == 0


@pytest.mark.parametrize('kernel, stride', [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize('height', [1, 2, 13])
def test_rows_of_a_convolution(kernel, stride, height):
    conv = nn.Conv2d(4, 4, kernel, stride, padding=kernel // 2, groups=2).double()
    x = randn(1, 4, height, 6)
    expected = conv(x)
    for first, last in itertools.combinations(range(expected.shape[2] + 1), 2):
        start, stop = input_rows(conv, (first, last), height)
        near = x[:, :, start:stop]
        rows = conv_rows(near, conv, conv.weight, conv.bias, (first, last), start, height)
        torch.testing.assert_close(rows, expected[:, :, first:last])


@pytest.mark.parametrize('height, row_bytes', [(1, 1), (7, 1 << 30), (200, 286720), (5, 0)])
def test_strips_cover_all_rows_once(height, row_bytes):
    strips = list(row_strips(height, row_bytes))
    assert [row for strip in strips for row in range(*strip)] == list(range(height))
    assert all(start < stop for start, stop in strips)


@pytest.mark.parametrize('rank_augmented', [True, False])
def test_streamed_state_is_linear_attention(rank_augmented):
    heads, dim = 2, 8
    q, k, v = randn(3, heads, 35, dim)
    q, k = q.relu(), 30 * k.relu()  # Scores large enough that the running maximum matters.
    weight = token_weights(q[None], k[None]) if rank_augmented else None
    rope = rope_2d(HW, dim, dtype=q.dtype)
    expected = linear_attention(q[None], k[None], v[None], rope, weight)[0]

    state = StreamedState(heads, dim, q.mean(1) if rank_augmented else None, q)
    for rows in ((0, 2), (2, 3), (3, 5)):
        tokens = slice(rows[0] * HW[1], rows[1] * HW[1])
        state.add(k[:, tokens], v[:, tokens], rotation(HW, k, rows))
    torch.testing.assert_close(state.read(q, rotation(HW, q)), expected)


def test_streaming_is_for_inference_alone():
    x = torch.rand(1)
    assert not streams(x)
    with torch.no_grad():
        assert streams(x)
        assert not streams(x.half())
        with torch.autocast('cpu'):
            assert not streams(x)
