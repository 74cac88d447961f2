"""The fused kernels against the float64 reference: on a GPU, else under triton's interpreter.

``TRITON_INTERPRET=1`` has to be set before triton is imported, so ``test_triton.py`` runs this
file in a process of its own. Needs torch, triton and pytest alone.
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mirrorla_mm.ops import (
    linear_attention,
    mirror_attention,
    mirror_attention_reference,
    mirror_feature_map,
    token_weights,
    use_backend,
)
from mirrorla_mm.ops.fused import TRITON_REASON

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
GPU = torch.cuda.is_available() and not INTERPRETED
if not (INTERPRETED or GPU):
    pytest.skip('no GPU; test_triton.py interprets this file', allow_module_level=True)
if TRITON_REASON:
    pytest.skip(TRITON_REASON, allow_module_level=True)

DEVICE = 'cuda' if GPU else 'cpu'
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
HW = (7, 11)  # 77 tokens: two splits and three tiles, none of them full at the end
NAMES = ('q', 'k', 'v', 'theta', 'theta_k')


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Memory not yet written is NaN in torch's deterministic mode, so that reading it shows."""
    torch.manual_seed(0)  # Here as well: this file also runs without the common fixtures.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def packed(batch, heads, tokens, channels, dtype):
    """q, k, v as a projection to 4C leaves them: views of one tensor, heads beside each other."""
    x = torch.randn(batch, tokens, 4, heads, channels, dtype=torch.float64)
    return x.to(DEVICE, dtype).permute(2, 0, 3, 1, 4).unbind(0)[:3]


def channels_first(batch, heads, tokens, channels, dtype):
    """q, k, v as a 1x1 convolution leaves them: tokens are contiguous."""
    x = torch.randn(batch, 3, heads, channels, tokens, dtype=torch.float64)
    return x.to(DEVICE, dtype).transpose(3, 4).unbind(1)


def angles(heads, channels, count=1):
    return [torch.randn(heads, channels // 2, device=DEVICE) for _ in range(count)]


def relative_error(actual, expected, smallest=1e-30):
    """||a - b|| / ||b||, as flash-linear-attention's tests take it, with a smallest ||b||."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(smallest)).item()


def run(function, inputs, needs, grad, **options):
    """Output and gradients by name; ``needs`` names the inputs that want one."""
    leaves = {
        name: x.detach().requires_grad_(name in needs) if x is not None else None
        for name, x in inputs.items()
    }
    out = function(
        *(leaves[n] for n in ('q', 'k', 'v')),
        leaves.get('theta'),
        theta_k=leaves.get('theta_k'),
        **options,
    )
    if needs:
        out.backward(grad)
    return {'out': out.detach()} | {name: leaves[name].grad for name in needs}


def fused(*args, **options):
    with use_backend('triton'):
        return mirror_attention(*args, **options)


def assert_like_reference(
    qkv, thetas=(), needs=None, grad=None, tolerance=None, smallest=1e-30, **options
):
    inputs = dict(zip(NAMES, (*qkv, *thetas)))
    needs = tuple(inputs) if needs is None else needs
    grad = torch.randn_like(qkv[2]) if grad is None else grad
    actual = run(fused, inputs, needs, grad, **options)
    double = {name: x.double() for name, x in inputs.items()}
    expected = run(mirror_attention_reference, double, needs, grad.double(), **options)
    assert actual['out'].dtype == qkv[2].dtype
    for name, value in expected.items():
        error = relative_error(actual[name], value, smallest)
        assert error <= (tolerance or TOLERANCE[qkv[2].dtype]), f'{name}: {error:.1e}'


@pytest.mark.parametrize(
    'feature_map, rank_augmented, variance_aware, hw_shape, channels',
    [
        ('mirror', True, True, HW, 48),
        ('mirror', True, False, None, 20),
        ('mirror', False, True, None, 16),
        ('mirror', False, False, HW, 20),
        ('elu', True, True, HW, 20),
        ('elu', False, True, None, 16),
        ('relu', True, False, None, 18),
        ('relu', False, False, HW, 16),
    ],
)
def test_output_and_gradients(feature_map, rank_augmented, variance_aware, hw_shape, channels):
    assert_like_reference(
        packed(1, 2, math.prod(HW), channels, torch.float32),
        angles(2, channels) if feature_map == 'mirror' else (),
        feature_map=feature_map,
        rank_augmented=rank_augmented,
        variance_aware=variance_aware,
        hw_shape=hw_shape,
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    assert_like_reference(packed(1, 1, 77, 32, dtype), angles(1, 32), hw_shape=HW)


def test_channels_first_images_of_a_batch():
    qkv = channels_first(2, 1, 40, 16, torch.float32)
    assert_like_reference(qkv, angles(1, 16, 2), hw_shape=(40, 1), lam=-0.7, alpha_max=1.0)
    assert fused(*qkv, *angles(1, 16)).stride() == (16 * 40, 16 * 40, 1, 40)


def test_largest_head():
    assert_like_reference(packed(1, 1, 35, 128, torch.float32), angles(1, 128), hw_shape=(5, 7))


@pytest.mark.parametrize('feature_map, rank_augmented', [('elu', True), ('relu', False)])
def test_odd_channels(feature_map, rank_augmented):
    qkv = packed(2, 2, 77, 11, torch.float32)
    assert_like_reference(qkv, feature_map=feature_map, rank_augmented=rank_augmented)


def test_the_last_of_odd_channels_has_no_mirror():
    """It is rectified alone, as if a zero channel stood beside it that no mirror touches."""
    q, k, v = packed(2, 1, 77, 11, torch.float32)
    theta = angles(1, 10)[0]
    inputs = dict(q=q, k=k, v=v, theta=theta)
    grad = torch.randn_like(v)
    actual = run(fused, inputs, NAMES[:4], grad)
    leaves = {name: x.double().requires_grad_() for name, x in inputs.items()}

    def features(x):
        mirrored = mirror_feature_map(x[..., :10], leaves['theta'])
        return torch.cat((mirrored, x[..., 10:].relu()), -1)

    f, e = features(leaves['q']), features(leaves['k'])
    weight = token_weights(f, e)
    out = linear_attention(f, e, leaves['v'], None, weight)
    out.backward(grad.double())
    assert relative_error(actual['out'], out) <= 1e-5
    for name, leaf in leaves.items():
        assert relative_error(actual[name], leaf.grad) <= 1e-5, name


def test_many_splits_are_merged_in_groups():
    """40 splits: three groups of sixteen, the last not full."""
    qkv = packed(1, 1, 40 * 64 - 7, 16, torch.float32)
    assert_like_reference(qkv, angles(1, 16))


def test_mixed_strides_and_an_expanded_gradient():
    q, k, v = packed(1, 2, 40, 16, torch.float32)
    k = k.transpose(2, 3).contiguous().transpose(2, 3)
    v = torch.randn(1, 2, 80, 32, device=DEVICE)[:, :, ::2, ::2]
    grad = torch.ones(1, 2, 1, 1, device=DEVICE).expand(1, 2, 40, 16)
    assert_like_reference((q, k, v), angles(2, 16), grad=grad, hw_shape=(8, 5))


@pytest.mark.parametrize('rank_augmented', [True, False])
@pytest.mark.parametrize('needs', [('q',), ('k',), ('v',), ('theta',), ('theta_k', 'v')])
def test_only_the_gradients_asked_for(needs, rank_augmented):
    thetas = angles(1, 16, 2 if 'theta_k' in needs else 1)
    assert_like_reference(
        packed(1, 1, 33, 16, torch.float32), thetas, needs, rank_augmented=rank_augmented
    )


def test_one_token():
    """Its output is v but for the 1e-6 in the normaliser, so that q and k hardly matter."""
    qkv = packed(2, 1, 1, 16, torch.float32)
    assert_like_reference(qkv, angles(1, 16), hw_shape=(1, 1), smallest=1)


@pytest.mark.parametrize('feature_map', ['mirror', 'relu'])
def test_empty_batch(feature_map):
    qkv = [x.requires_grad_() for x in packed(0, 2, 9, 16, torch.float32)]
    theta = angles(2, 16)[0].requires_grad_()
    out = fused(*qkv, theta, feature_map=feature_map, hw_shape=(3, 3))
    out.sum().backward()
    assert out.shape == (0, 2, 9, 16)
    assert all(x.grad.shape == x.shape for x in qkv)
    assert theta.grad is None if feature_map == 'relu' else not theta.grad.any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_all_zero_queries_give_zero(dtype):
    q, k, v = packed(1, 1, 40, 16, dtype)
    q = -q.abs()
    q[:, :, ::2] = q[:, :, ::2].abs()
    inputs = dict(q=q, k=k, v=v, theta=None)
    results = run(fused, inputs, ('q', 'k', 'v'), torch.ones_like(v), feature_map='relu')
    assert not results['out'][:, :, 1::2].any()
    assert all(x.isfinite().all() for x in results.values())
    assert_like_reference((q, k, v), feature_map='relu')
    nothing = run(
        fused, inputs | {'q': q * 0}, ('q', 'k', 'v'), torch.ones_like(v), feature_map='relu'
    )
    assert all(not x.any() for x in nothing.values())


def test_queries_as_small_as_the_normalisers_epsilon():
    """Elsewhere delta vanishes: the output depends on the ratio of S and m alone."""
    q, k, v = packed(1, 1, 40, 16, torch.float32)
    q[:, :, ::2] *= 1e-6
    assert_like_reference((q, k, v), angles(1, 16))


def test_constant_tokens():
    qkv = [x[:, :, :1].expand(1, 1, 50, 16) for x in packed(1, 1, 1, 16, torch.float32)]
    assert_like_reference(qkv, angles(1, 16), hw_shape=(5, 10), smallest=1)


@pytest.mark.parametrize('offset, scale', [(3000.0, 1.0), (0.0, 1e-3), (0.0, 50.0)])
def test_variance_of_far_small_and_large_values(offset, scale):
    """A naive sum of squares would lose the variance of tokens far from zero altogether."""
    q, k, v = (x * scale for x in packed(1, 1, 70, 16, torch.float32))
    inputs = dict(zip(NAMES, (q + offset, k, v, *angles(1, 16))))
    options = dict(rank_augmented=False)
    actual = run(fused, inputs, ('v',), torch.ones_like(v), **options)
    expected = run(
        mirror_attention_reference,
        {n: x.double() for n, x in inputs.items()},
        ('v',),
        torch.ones_like(v).double(),
        **options,
    )
    for name in ('out', 'v'):
        assert relative_error(actual[name], expected[name]) <= 1e-5


def test_scores_beyond_the_range_of_exp():
    """Scores near 160 that differ by little: only their differences have exponentials."""
    q, k, v = packed(1, 1, 70, 16, torch.float32)
    q, k = 2 + torch.rand_like(q), 16 + 0.05 * k
    assert_like_reference((q, k, v), feature_map='relu', tolerance=1e-3)


def test_no_weight_exceeds_one_in_the_backward_pass():
    """As where large scores, summed in another order, exceed the total that the forward kept."""
    from mirrorla_mm.ops.fused import passes
    from mirrorla_mm.ops.options import Options

    qkv, theta = packed(1, 1, 40, 16, torch.float32), angles(1, 16)[0]
    out, statistics = passes.forward(*qkv, theta, None, Options())
    statistics = statistics._replace(log_sum=statistics.log_sum - 1000)
    gradients = [torch.empty_like(x) for x in qkv]
    gradients += passes.backward(
        out, *qkv, statistics, gradients, Options(), needs_angles=(True, False), shared=True
    )
    assert all(x.isfinite().all() for x in gradients[:4])


def test_saturated_float16_outputs_have_no_gradient():
    """As in the reference; theirs would be millions of times those of the others."""
    torch.manual_seed(0)
    q, k, v = packed(1, 1, 40, 16, torch.float16)
    v += 20_000
    k[..., ::2] = -1
    q[:, :, ::2, 1::2] = -1  # no feature in common with any key, until RoPE turns them
    options = dict(feature_map='relu', rank_augmented=False, hw_shape=(8, 5))
    inputs, grad = dict(q=q, k=k, v=v), 1e-3 * torch.randn_like(v)
    actual, expected = (
        run(function, inputs, ('q', 'k', 'v'), grad, **options)
        for function in (fused, mirror_attention_reference)
    )
    assert (actual['out'][:, :, ::2].abs() == 65504).all()
    for name, value in expected.items():
        assert value.isfinite().all()
        assert relative_error(actual[name], value.double()) <= 5e-3, name


def test_float16_products_do_not_overflow():
    """Without rank augmentation, which would give one key all the weight: see the limits in
    ``docs/mirror_attention_backward.md``.
    """
    q, k, v = packed(1, 1, 40, 16, torch.float16)
    v = (20_000 * v).clamp(-30_000, 30_000)
    options = dict(rank_augmented=False, hw_shape=(8, 5))
    assert_like_reference((30 * q, 30 * k, v), angles(1, 16), **options)


@pytest.mark.parametrize(
    'feature_map, dtype',
    [('relu', torch.float32), ('relu', torch.float16), ('elu', torch.float32)],
)
def test_a_nan_is_not_hidden(feature_map, dtype):
    q, k, v = packed(1, 1, 20, 16, dtype)
    q[0, 0, 3, 4] = math.nan
    assert fused(q, k, v, feature_map=feature_map, rank_augmented=False)[0, 0, 3].isnan().all()


@pytest.mark.parametrize('feature_map', ['mirror', 'elu'])
def test_neighbours_in_memory_are_not_read(feature_map):
    around = torch.full((4, 1, 2, 40, 32), math.nan, device=DEVICE)
    inside = around[..., :35, :20].normal_()
    *qkv, grad = inside.unbind(0)
    thetas = angles(2, 20) if feature_map == 'mirror' else ()
    assert_like_reference(qkv, thetas, grad=grad, feature_map=feature_map, hw_shape=(5, 7))
    assert around[..., 35:, :].isnan().all() and around[..., 20:].isnan().all()


@pytest.mark.skipif(not INTERPRETED, reason='reserves gigabytes of memory that it does not touch')
@pytest.mark.parametrize('large', ['head', 'token', 'channel'])
def test_offsets_of_any_stride(large):
    """Of the last head, token or channel; on a GPU they go beyond 2^31 with many tokens."""
    shape = (1, 2, 5, 16)
    strides = [0, 80, 16, 1]
    dimension = {'head': 1, 'token': 2, 'channel': 3}[large]
    strides[dimension] = 2**31 // (shape[dimension] - 1) + 1000
    last = sum(s * (n - 1) for s, n in zip(strides, shape))
    storage = torch.UntypedStorage(2 * (last + 1))
    q = torch.empty(0, dtype=torch.float16).set_(storage, 0, shape, strides)
    q.copy_(torch.randn(shape))
    k, v = (torch.randn(shape).half() for _ in range(2))
    assert_like_reference((q, k, v), angles(2, 16))


def test_same_bits_twice():
    inputs = dict(zip(NAMES, (*packed(1, 1, 77, 16, torch.float32), *angles(1, 16))))
    grad = torch.randn_like(inputs['v'])
    first, second = (run(fused, inputs, NAMES[:4], grad, hw_shape=HW) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def operator_arguments(requires_grad=True):
    qkv = packed(1, 1, 17, 16, torch.float32)
    inputs = [x.clone().requires_grad_(requires_grad) for x in (*qkv, *angles(1, 16))]
    return (*inputs, None, 'mirror', True, True, 1.0, 1.5, [1, 17])


def modulated(out, v, gate=None):
    """Finish as a layer does: add an enhancement of v by its neighbours, multiply by a gate."""
    out = out.transpose(1, 2).flatten(2) + 0.5 * v.roll(1, dims=1)
    return out if gate is None else out * gate


@pytest.mark.parametrize(
    'parts, use, dtype, channels',
    [
        (4, modulated, torch.float32, 16),
        (4, modulated, torch.bfloat16, 16),
        (3, modulated, torch.float32, 68),  # v's gradient in a pass of its own
        (4, lambda out, v, gate: out.transpose(1, 2).flatten(2), torch.float32, 16),
        (4, lambda out, v, gate: v * gate, torch.float32, 16),
        (3, lambda out, v: v, torch.float32, 16),
    ],
)
def test_gradient_of_a_packed_projection(parts, use, dtype, channels):
    from mirrorla_mm.ops.fused.operator import mirror_attention_packed
    from mirrorla_mm.ops.options import Options

    grid = (5, 7)
    options = Options(hw_shape=grid)
    packed = torch.randn(2, 35, parts, 2, channels, device=DEVICE).to(dtype)
    (theta,) = angles(2, channels)

    def plain(packed, theta):
        q, k, v, *gate = packed.unbind(2)
        heads = (x.transpose(1, 2) for x in (q, k, v))
        out = mirror_attention_reference(*heads, theta, hw_shape=grid)
        return out, *(x.flatten(2) for x in (v, *gate))

    def gradients(attend, *inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = use(*attend(*leaves))
        grad = torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out)
        found = torch.autograd.grad(out, leaves, grad.to(out.dtype), materialize_grads=True)
        return out.detach(), *found

    actual = gradients(lambda x, t: mirror_attention_packed(x, t, None, options), packed, theta)
    expected = gradients(plain, packed.double(), theta.double())
    for name, a, b in zip(('out', 'packed', 'theta'), actual, expected):
        assert relative_error(a, b, 1e-3) <= TOLERANCE[dtype], name


@pytest.mark.parametrize('compiled', [False, True])
def test_a_layers_gradient_is_neither_joined_nor_added_up(compiled):
    """Every gradient of the projection is written once, where its products read it."""
    pytest.importorskip('mmengine')
    from torch.utils._python_dispatch import TorchDispatchMode

    from mirrorla_mm.attention import MirrorAttention

    long_ones = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            first = result[0] if isinstance(result, tuple) else result
            if first is not None and first.numel() >= grad.numel():
                long_ones.add(function.overloadpacket.__name__)
            return result

    layer = MirrorAttention(32, 2, gate=True, lepe_kernel=3, rope=True).to(DEVICE)
    x = torch.randn(2, 77, 32, device=DEVICE)
    grad = torch.randn_like(x)
    with use_backend('torch'):
        expected = layer.double()(x.double(), HW)
        wanted = torch.autograd.grad(expected, [*layer.parameters()], grad.double())
    layer.float()
    run = torch.compile(layer, fullgraph=True, backend='aot_eager') if compiled else layer
    with use_backend('triton'):
        out = run(x, HW)
    assert relative_error(out, expected) <= 1e-5
    with Seen():
        found = torch.autograd.grad(out, [*layer.parameters()], grad)
    for (name, _), a, b in zip(layer.named_parameters(), found, wanted):
        assert relative_error(a, b, 1e-3) <= 1e-5, name
    assert 'mirror_attention_backward' in long_ones
    assert not long_ones & {'cat', 'stack', 'add', 'add_', 'slice_backward', 'select_backward'}


@pytest.mark.parametrize('layout, channels', [(packed, 20), (channels_first, 16)])
def test_the_plain_peer_of_the_benchmark(layout, channels):
    from mirrorla_mm.analysis.plain_triton import plain_linear_attention

    q, k, v = layout(2, 2, 77, channels, torch.float32)
    leaves = [x.detach().requires_grad_() for x in (q.relu(), k.relu(), v)]
    double = [x.detach().double().requires_grad_() for x in leaves]
    out, expected = plain_linear_attention(*leaves), linear_attention(*double)
    assert relative_error(out, expected) <= 1e-5
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    for a, b in zip(found, torch.autograd.grad(expected, double, grad.double())):
        assert relative_error(a, b) <= 1e-5


def test_registration():
    from mirrorla_mm.ops.fused.operator import mirror_attention_op

    torch.library.opcheck(mirror_attention_op, operator_arguments())


def test_compiled_whole_with_gradients():
    inputs = dict(zip(NAMES, (*packed(1, 1, 17, 16, torch.float32), *angles(1, 16))))
    grad = torch.randn_like(inputs['v'])
    eager = run(fused, inputs, NAMES[:4], grad, hw_shape=(1, 17))
    compiled = torch.compile(fused, fullgraph=True, backend='aot_eager')
    result = run(compiled, inputs, NAMES[:4], grad, hw_shape=(1, 17))
    assert all(torch.equal(eager[name], result[name]) for name in eager)


def test_exported():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, theta):
            return fused(q, k, v, theta, hw_shape=(1, 17))

    inputs = tuple(x.detach() for x in operator_arguments()[:4])
    program = torch.export.export(Attention(), inputs)
    assert torch.equal(program.module()(*inputs), Attention()(*inputs))


def test_activation_checkpointing():
    from torch.utils.checkpoint import checkpoint

    inputs = dict(zip(NAMES, (*packed(1, 1, 17, 16, torch.float32), *angles(1, 16))))
    grad = torch.randn_like(inputs['v'])
    plain = run(fused, inputs, NAMES[:4], grad)

    def checkpointed(*args, **options):
        return checkpoint(fused, *args, use_reentrant=False, **options)

    again = run(checkpointed, inputs, NAMES[:4], grad)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


class Layer(torch.nn.Module):
    """A projection to q, k, v, and the operator."""

    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(8, 48)
        self.theta = torch.nn.Parameter(torch.randn(1, 8))

    def forward(self, x):
        return fused(*self.qkv(x).unsqueeze(1).chunk(3, -1), self.theta, hw_shape=(2, 3))


def seeded_layer_and_inputs(rank):
    torch.manual_seed(0)
    layer = Layer().to(DEVICE)
    return layer, torch.randn(2, 2, 6, 8, device=DEVICE)[rank]


def train_data_parallel(rank, folder):
    # By a file, as a free port may be another process's by the time that it is used.
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2
    )
    layer, x = seeded_layer_and_inputs(rank)
    parallel = torch.nn.parallel.DistributedDataParallel(layer)
    parallel(x).square().sum().backward()
    torch.save([p.grad for p in layer.parameters()], f'{folder}/{rank}.pth')
    # The reducer in the wrapper would drop the last reference to gloo's group with the GIL held,
    # and wait for a thread that wants the GIL (pytorch #180701, #182083).
    del parallel
    gc.collect()
    torch.distributed.destroy_process_group()


def test_data_parallel_gradients_are_means(tmp_path):
    here = Path(__file__)
    code = f'from {here.stem} import *; train_data_parallel(%d, {str(tmp_path)!r})'
    env = {**os.environ, 'PYTHONPATH': f'{here.parents[2]}{os.pathsep}{here.parent}'}
    ranks = [subprocess.Popen([sys.executable, '-c', code % rank], env=env) for rank in range(2)]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    gradients = []
    for rank in range(2):
        layer, x = seeded_layer_and_inputs(rank)
        layer(x).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    expected = [(a + b) / 2 for a, b in zip(*gradients)]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f'{rank}.pth'), expected)


def test_autocast_leaves_precision_to_the_operator():
    q, k, v = packed(1, 1, 17, 16, torch.float32)
    theta = angles(1, 16)[0]
    with torch.autocast(DEVICE, torch.bfloat16):
        out = fused(q, k, v, theta)
    assert torch.equal(out, fused(q, k, v, theta))


def test_second_order_is_refused():
    q, k, v, theta = operator_arguments()[:4]
    (grad,) = torch.autograd.grad(fused(q, k, v, theta).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once only.*use_backend\('torch'\)"):
        grad.sum().backward()


@pytest.mark.skipif(not INTERPRETED, reason='counts loads and stores in the interpreter')
@pytest.mark.parametrize('rank_augmented', [True, False])
def test_traffic_model_counts_what_is_moved(rank_augmented, monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    from mirrorla_mm.analysis import traffic
    from mirrorla_mm.ops.fused import launching, passes
    from mirrorla_mm.ops.options import Options

    q, k, v = packed(1, 2, 77, 16, torch.float32)
    options = Options('mirror', rank_augmented, True, 1.0, 1.5, ())
    moved = []

    def counting(name, mask_position):
        original = getattr(InterpreterBuilder, name)

        def wrapped(self, ptrs, *args):
            width = ptrs.get_element_ty().primitive_bitwidth // 8
            moved[-1] += int(args[mask_position].data.sum()) * width
            return original(self, ptrs, *args)

        monkeypatch.setattr(InterpreterBuilder, name, wrapped)

    counting('create_masked_load', 0)
    counting('create_masked_store', 1)
    launched, original = [], launching.Step.__call__

    def recording(step, tensors, stream):
        moved.append(0)
        launched.append(step.bind(tensors))
        original(step, tensors, stream)

    monkeypatch.setattr(launching.Step, '__call__', recording)
    out, statistics = passes.forward(q, k, v, *angles(2, 16), None, options)
    gradients = [passes.empty_out(x) for x in (q, k, v)]
    passes.backward(
        out, q, k, v, statistics, gradients, options,
        needs_angles=(True, True), v_more=passes.empty_out(v).zero_(),
    )  # fmt: skip
    for actual, expected in zip(moved, map(traffic.traffic, launched), strict=True):
        assert expected.tokens <= actual <= expected.tokens + expected.rest, expected.kernel


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('channels', [16, 32, 40, 48, 64, 96, 128])
@pytest.mark.parametrize('layout', [packed, channels_first])
def test_on_a_gpu(layout, channels, dtype):
    hw_shape = (61, 83)
    qkv = layout(2, 3, math.prod(hw_shape), channels, dtype)
    assert_like_reference(qkv, angles(3, channels), hw_shape=hw_shape)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason='needs a GPU')
def test_tf32_follows_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', True)
    qkv = packed(2, 2, 5000, 64, torch.float32)
    assert_like_reference(qkv, angles(2, 64), tolerance=1e-3, hw_shape=(50, 100))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason='needs a GPU')
def test_offsets_beyond_32_bits():
    tokens = 300_000
    x = torch.randn(1, tokens, 4, 64, 32, device=DEVICE, dtype=torch.float16)
    q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)[:3]
    theta = angles(64, 32)[0]
    out = fused(q, k, v, theta, hw_shape=(500, 600))[:, -1:]
    expected = mirror_attention_reference(
        *(t[:, -1:].double() for t in (q, k, v)), theta[-1:].double(), hw_shape=(500, 600)
    )
    assert relative_error(out, expected) <= 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason='needs a GPU')
def test_captured_in_a_cuda_graph():
    inputs = (*packed(2, 2, 1000, 32, torch.bfloat16), *angles(2, 32))
    fused(*inputs)  # tuning may not happen during a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused(*inputs)
    inputs[0].normal_()
    graph.replay()
    assert torch.equal(out, fused(*inputs))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU or torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_on_another_gpu_than_the_current_one():
    qkv = [x.to('cuda:1') for x in packed(1, 2, 100, 32, torch.float32)]
    thetas = [x.to('cuda:1') for x in angles(2, 32)]
    assert_like_reference(qkv, thetas, hw_shape=(10, 10))
