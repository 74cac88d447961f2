"""The fused operator without a GPU: interpreted, compiled ahead of time, counted, refused."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mirrorla_mm.ops import fused, mirror_attention, mirror_attention_reference, use_backend

NUMERICS = Path(__file__).with_name('test_triton_numerics.py')
needs_triton = pytest.mark.skipif(fused.TRITON_REASON is not None, reason=str(fused.TRITON_REASON))
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

# Bytes a thread may keep on its stack: the table of the sines' argument reduction is there.
LARGEST_STACK = {'angle_kernel': 64}


@pytest.mark.slow
@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available(), reason='the numerics run in this very process'
)
def test_numerics_under_the_interpreter():
    pytest.importorskip('numpy')  # the interpreter's arrays
    # The common fixtures import mmengine, which the operators do without.
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '--noconftest', '-p', 'no:cacheprovider', NUMERICS],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        cwd=NUMERICS.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def empty_qkv(head_dim, dtype=torch.bfloat16, hw_shape=(200, 320), batch=2, heads=2):
    """q, k, v without memory, views of one projection."""
    tokens = hw_shape[0] * hw_shape[1]
    x = torch.empty(batch, tokens, 4, heads, head_dim, dtype=dtype, device='meta')
    return x.permute(2, 0, 3, 1, 4).unbind(0)[:3]


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='interpreted kernels do not compile')
@pytest.mark.parametrize(
    'head_dim, dtype, capability',
    [(64, torch.bfloat16, 90), (40, torch.float16, 89), (48, torch.float32, 80)],
)
def test_compiled_within_registers_and_shared_memory(head_dim, dtype, capability):
    """Tuning finds a configuration that does; kernel_report.py compiles them all."""
    from mirrorla_mm.analysis.ahead_of_time import SHARED_MEMORY, resources
    from mirrorla_mm.analysis.traffic import dry_run
    from mirrorla_mm.ops.options import Options

    qkv = empty_qkv(head_dim, dtype)
    options = Options('mirror', True, True, 1.0, 1.5, (200, 320))
    launches = {x.name: x for needs in (None, (True,) * 5) for x in dry_run(*qkv, options, needs)}
    assert len(launches) == 8
    for name, launch in launches.items():
        found = (resources(launch, config, capability) for config in launch.configurations)
        assert any(
            used.stack <= LARGEST_STACK.get(name, 0) and used.shared <= SHARED_MEMORY[capability]
            for used in found
        ), name


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='interpreted kernels do not compile')
def test_tf32_operands_are_rounded_and_not_cut():
    """Cut operands shrink every product: 1.5e-3 off instead of 5e-4."""
    from mirrorla_mm.analysis.ahead_of_time import compile_launch
    from mirrorla_mm.analysis.traffic import dry_run
    from mirrorla_mm.ops.options import Options

    (launch,) = (
        x for x in dry_run(*empty_qkv(32, torch.float16), Options()) if x.name == 'output_kernel'
    )
    ptx = compile_launch(launch, launch.configurations[0], 90).asm['ptx']
    assert 'tf32' in ptx.replace('cvt.rna.tf32', '')  # the products
    assert 'cvt.rna.tf32.f32' in ptx


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='the interpreter splits the tokens finely')
@pytest.mark.parametrize(
    'rank_augmented, variance_aware', list(itertools.product((True, False), repeat=2))
)
@pytest.mark.parametrize('dtype, more', [(torch.bfloat16, False), (torch.float16, True)])
def test_each_pass_moves_each_tensor_once(rank_augmented, variance_aware, dtype, more):
    from mirrorla_mm.analysis.traffic import dry_run, floor_bytes, traffic
    from mirrorla_mm.ops.options import Options

    qkv = empty_qkv(64, dtype)
    options = Options('mirror', rank_augmented, variance_aware, 1.0, 1.5, (200, 320))
    for needs in (None, (True,) * 5):
        counted = [traffic(launch) for launch in dry_run(*qkv, options, needs, more)]
        backward = needs is not None
        floor = floor_bytes(qkv[0].shape, dtype, options, backward=backward, more=more)
        assert sum(x.tokens for x in counted) == floor
        # Counted at the most; statistics that every program reads come from the cache.
        assert sum(x.rest for x in counted) <= 0.25 * floor


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='the interpreter splits the tokens finely')
def test_nothing_as_long_as_n_but_inputs_outputs_and_gradients():
    from mirrorla_mm.analysis.traffic import dry_run
    from mirrorla_mm.ops.options import Options

    tokens = 512 * 512
    qkv = empty_qkv(64, hw_shape=(512, 512), batch=1, heads=1)
    options = Options('mirror', True, True, 1.0, 1.5, (512, 512))
    for needs, long_ones in (
        (None, 'q k v out'),
        ((True,) * 5, 'q k v grad_out q_grad k_grad v_grad'),
    ):
        seen = set()
        for launch in dry_run(*qkv, options, needs):
            for name, x in launch.arguments.items():
                if isinstance(x, torch.Tensor) and tokens in x.shape:
                    seen.add(name)
        assert seen == set(long_ones.split())


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='the interpreter splits the tokens finely')
@pytest.mark.parametrize('batch, hw_shape', [(100_000, (2, 3)), (1, (500, 600))])
def test_grids_are_within_the_limits_of_cuda(batch, hw_shape):
    from mirrorla_mm.analysis.traffic import dry_run
    from mirrorla_mm.ops.options import Options

    qkv = empty_qkv(32, hw_shape=hw_shape, batch=batch)
    options = Options(hw_shape=hw_shape)
    for needs in (None, (True,) * 5):
        for launch in dry_run(*qkv, options, needs):
            x, *others = launch.grid
            assert x < 2**31 and max(others, default=1) < 2**16, launch.name


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='interpreted kernels do not compile')
@pytest.mark.parametrize('head_dim', [24, 40])
def test_strides_that_are_multiples_of_8_keep_loads_16_bytes_wide(head_dim):
    from mirrorla_mm.analysis.ahead_of_time import compile_launch
    from mirrorla_mm.analysis.traffic import dry_run
    from mirrorla_mm.ops.options import Options

    launches = dry_run(*empty_qkv(head_dim), Options(hw_shape=(200, 320)))
    (launch,) = (x for x in launches if x.name == 'mean_query_kernel')
    ptx = compile_launch(launch, launch.configurations[0], 90).asm['ptx']
    assert 'ld.global.b16' not in ptx and 'ld.global.v4.b32' in ptx


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='interpreted kernels do not compile')
def test_the_last_program_releases_and_acquires():
    """The order of memory that :func:`merging.arrives_last` relies on, in the code that runs."""
    from mirrorla_mm.analysis.ahead_of_time import compile_launch
    from mirrorla_mm.analysis.traffic import dry_run
    from mirrorla_mm.ops.options import Options

    (launch,) = (x for x in dry_run(*empty_qkv(16), Options()) if x.name == 'state_kernel')
    ptx = compile_launch(launch, launch.configurations[0], 90).asm['ptx']
    before, *after = re.split(r'atom\.global\.gpu\.acq_rel\.add', ptx)
    assert len(after) == 2  # of a group, and of a head
    # Between any thread's stores and the addition, and between the addition and any thread's loads.
    for code in (before[before.rindex('st.global') :], *after):
        assert 'bar.sync' in code
    assert 'atom' not in before and not re.search(r'\bred\.', ptx)  # none on values


@pytest.mark.parametrize(
    'change, reason',
    [
        pytest.param({}, 'tensors are on the cpu, not on a GPU', marks=needs_triton),
        ({'dtype': torch.float64}, 'takes float32, float16 and bfloat16, got torch.float64'),
        ({'channels': 130}, 'a head may have 128 channels at most, got 130'),
        (
            {'channels': 18, 'hw_shape': (2, 3)},
            'RoPE needs a multiple of 4 channels per head, got 18',
        ),
        ({'more_keys': 2}, r'q, k and v need one shape, got \(1, 1, 6, 16\), \(1, 1, 8, 16\)'),
    ],
)
def test_forcing_the_impossible_says_why(change, reason, monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    channels, hw_shape = change.get('channels', 16), change.get('hw_shape')
    q = torch.rand(1, 1, 6, channels, dtype=change.get('dtype'))
    k = torch.rand(1, 1, 6 + change.get('more_keys', 0), channels, dtype=change.get('dtype'))
    forced = pytest.raises(RuntimeError, match=f"'triton' is forced but cannot run: .*{reason}")
    with use_backend('triton'), forced:
        mirror_attention(q, k, k, feature_map='relu', hw_shape=hw_shape)


@needs_triton
@pytest.mark.parametrize(
    'major, shared, dtype, channels, reason',
    [
        (9, 232_448, torch.float32, 96, None),
        (8, 166_912, torch.float32, 128, None),
        (8, 101_376, torch.float32, 64, None),
        (8, 101_376, torch.bfloat16, 128, None),
        (8, 101_376, torch.float32, 96, 'need 163840 bytes of shared memory, the GPU has 101376'),
        (7, 98_304, torch.float16, 32, 'needs compute capability 8.0 or newer, got 7.5'),
    ],
)
@pytest.mark.filterwarnings('ignore:The fused mirror attention does not run')
def test_a_gpu_too_small_is_known_before_the_call(
    major, shared, dtype, channels, reason, monkeypatch
):
    """A compiled graph, which holds the operator, could not turn back."""
    from mirrorla_mm.ops.backend import Heads, select_backend
    from mirrorla_mm.ops.options import Options

    gpu = SimpleNamespace(major=major, minor=5, shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: gpu)
    monkeypatch.setattr(torch.version, 'hip', None)
    monkeypatch.setattr(fused, '_launch_reason', lambda device: None)
    heads = Heads((1, 2, 9, channels), dtype, torch.device('cuda'))
    arguments = (heads, heads, heads, None, None, Options('relu'))
    fused._warn_once.cache_clear()
    with use_backend('triton'):
        if reason is None:
            assert select_backend(*arguments).run is fused._run
            return
        with pytest.raises(RuntimeError, match=f"'triton' is forced but cannot run: .*{reason}"):
            select_backend(*arguments)
    with use_backend(None):
        assert select_backend(*arguments).run is not fused._run


@pytest.fixture
def gpus(monkeypatch):
    """Large ones without a launch behind them; what is asked of them is kept in ``launched``."""
    from mirrorla_mm.ops.fused import launching

    gpu = SimpleNamespace(major=9, minor=0, shared_memory_per_block_optin=232_448)
    launched = []
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: gpu)
    monkeypatch.setattr(torch.version, 'hip', None)
    monkeypatch.setattr(fused, '_launch_reasons', {})
    monkeypatch.setattr(fused, 'capturing', lambda device: False)
    monkeypatch.setattr(launching, 'launch_nothing', launched.append)
    return launched


def backend_of(device):
    from mirrorla_mm.ops.backend import Heads, select_backend
    from mirrorla_mm.ops.options import Options

    heads = Heads((1, 2, 9, 16), torch.float32, torch.device(device))
    with use_backend(None):
        return select_backend(heads, heads, heads, None, None, Options('relu'))


@needs_triton
def test_without_a_c_compiler_another_backend_runs_after_one_warning(gpus, monkeypatch):
    from mirrorla_mm.ops.fused import launching

    def launch(device):
        gpus.append(device)
        if device.index == 1:
            raise RuntimeError('Failed to find C compiler.\nPlease specify')

    monkeypatch.setattr(launching, 'launch_nothing', launch)
    assert backend_of('cuda:0').run is fused._run
    with pytest.warns(RuntimeWarning, match='does not run: .* C compiler .* cuda:1') as warned:
        found = [backend_of('cuda:1').run for _ in range(2)]
    assert fused._run not in found and len(warned) == 1 and '\n' not in str(warned[0].message)
    assert backend_of('cuda:0').run is fused._run and [x.index for x in gpus] == [0, 1]


@needs_triton
def test_no_kernel_is_tried_while_a_graph_is_captured_or_compiled(gpus, monkeypatch):
    monkeypatch.setattr(fused, 'capturing', lambda device: True)
    assert backend_of('cuda:0').run is fused._run and not gpus
    monkeypatch.setattr(fused, 'capturing', lambda device: False)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    assert fused._device_reason(torch.device('cuda:0'), 0) is None and not gpus
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: False)
    fused._launch_reasons[torch.device('cuda:0')] = 'no C compiler'
    monkeypatch.setattr(fused, 'capturing', lambda device: True)
    assert backend_of('cuda:0').run is not fused._run  # what is known counts in a capture, too


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available(), reason='a GPU that is not there would be in its way'
)
def test_the_kernel_that_is_tried_goes_all_the_way(monkeypatch):
    from mirrorla_mm.analysis.fake_gpu import fake_gpu
    from mirrorla_mm.ops.fused import launching

    entered = []
    monkeypatch.setattr(torch.cuda, 'device', lambda x: entered.append(x) or nullcontext())
    with fake_gpu() as gpu:
        launching.launch_nothing(torch.device('cuda:1'))
    assert [x.kernel for x in gpu.launched] == ['_nothing'] and entered[0].index == 1


@needs_triton
def test_a_table_of_half_precision_adds_less_than_the_inputs_have():
    from mirrorla_mm.ops.fused.passes import make_rope_table

    exact = make_rope_table(512, 64, torch.float64, 'cpu')
    half = make_rope_table(512, 64, torch.float16, 'cpu').double()
    assert (half - exact).abs().max() <= 1.001 * 2**-12  # of numbers up to 1
    # A vector turned by it is off by half of what rounding to float16 costs, and an eighth of
    # what rounding to bfloat16 costs, which its channels have been.
    x = torch.randn(512, 16, 2, dtype=torch.float64)

    def turned(table):
        cos, sin = table
        return torch.stack((cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]))

    error = (turned(half) - turned(exact)).norm() / x.norm()
    rounding = [(x.to(d).double() - x).norm() / x.norm() for d in (torch.half, torch.bfloat16)]
    assert error <= rounding[0] and error <= rounding[1] / 6


@needs_triton
def test_work_is_dealt_out_in_whole_waves():
    """48 heads on 264 places: 5 programs each leave 24 idle, 11 each fill them twice."""
    from mirrorla_mm.ops.fused.launching import split_tokens

    if INTERPRETED:
        pytest.skip('the interpreter splits the tokens finely')
    for rows, tokens in ((1, 1), (2, 262_144), (48, 16_384), (48, 65_536), (5000, 196)):
        chunk, count = split_tokens(tokens, rows, torch.device('cpu'), 2, 64, smallest=256)
        assert chunk % 128 == 0 and (count - 1) * chunk < tokens <= count * chunk
        waves = -(-rows * count // 264)
        busy = rows * tokens / (waves * 264 * chunk)
        assert busy > 0.85 or chunk == 256 or rows > 264, (rows, tokens, busy)
    # A grid that leaves places idle is cut finer, but for passes that leave a matrix.
    assert split_tokens(16_000, 2, torch.device('cpu'), 4, 32) == (128, 125)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='the interpreter splits the tokens finely')
def test_few_splits_are_tried_and_none_of_the_others_is_sooner(monkeypatch):
    """Training at many sizes meets a new shape in every step, so none may be dear."""
    from mirrorla_mm.ops.fused import launching

    def cdiv(x, y):
        return -(-x // y)

    def best_of_all(tokens, rows, slots, overhead, smallest):
        def chunk(count):
            return max(smallest, cdiv(cdiv(tokens, count), 128) * 128)

        counts = range(1, cdiv(launching.WAVES * slots, rows) + 1)
        times = [cdiv(rows * x, slots) * (chunk(x) + overhead) for x in counts]
        return chunk(counts[times.index(min(times))])

    calls = []
    monkeypatch.setattr(launching.triton, 'cdiv', lambda x, y: calls.append(1) or cdiv(x, y))
    draw = random.Random(0)
    for _ in range(300):
        tokens, rows = (int(2 ** draw.uniform(0, bits)) for bits in (18, 13))
        multiprocessors, programs = draw.choice((1, 20, 108, 132)), draw.choice((2, 4, 8))
        overhead, smallest = draw.choice((0, 32, 128)), draw.choice((128, 256))
        monkeypatch.setattr(launching, 'multiprocessors', lambda device, n=multiprocessors: n)
        calls.clear()
        where = tokens, rows, torch.device('cpu')
        chunk, count = launching.split_tokens(*where, programs, overhead, smallest)
        assert chunk == best_of_all(tokens, rows, multiprocessors * programs, overhead, smallest)
        assert count == cdiv(tokens, chunk) and len(calls) <= 4 + 3 * 2 * launching.WAVES


@needs_triton
def test_the_tuners_key_knows_layout_alignment_length_and_whether_the_gpu_is_full():
    """None of them is a constant of the kernels, but each may want another choice."""
    from mirrorla_mm.ops.fused import tuning

    kinds = itertools.product((256, 1024, 4096), tuning.LAYOUTS, (False, True), (False, True))
    assert len({tuning.regime(*kind) for kind in kinds}) == 36


@needs_triton
def test_what_is_tuned_on_a_few_tokens_is_not_kept_for_a_full_gpu():
    from mirrorla_mm.analysis.traffic import dry_run
    from mirrorla_mm.ops.options import Options

    def regimes(batch):
        launches = dry_run(*empty_qkv(64, hw_shape=(7, 7), batch=batch), Options())
        return [x.arguments['regime'] for x in launches]

    few, many, more = map(regimes, (1, 128, 256))
    assert many == more and all(a != b for a, b in zip(few, many, strict=True))


@needs_triton
def test_an_old_triton_is_left_alone(monkeypatch):
    assert fused._triton_reason() is None
    monkeypatch.setattr(fused, 'version', lambda name: '3.2.0')
    assert fused._triton_reason() == 'triton needs to be 3.6 or newer, got 3.2.0'


def test_cpu_tensors_fall_back_in_eager_and_in_one_compiled_graph():
    q, k, v = torch.rand(3, 1, 2, 12, 8)
    theta = torch.rand(2, 4)
    expected = mirror_attention_reference(q, k, v, theta)
    with use_backend(None):
        compiled = torch.compile(mirror_attention, fullgraph=True, backend='aot_eager')
        torch.testing.assert_close(mirror_attention(q, k, v, theta), expected)
        torch.testing.assert_close(compiled(q, k, v, theta), expected)


@pytest.mark.slow
@needs_triton
def test_importing_the_operators_does_not_import_triton():
    code = "import sys, mirrorla_mm.ops; assert 'triton' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=NUMERICS.parents[2])


@needs_triton
def test_a_backward_pass_that_does_not_fit_is_the_references_and_so_is_what_follows(monkeypatch):
    from triton.runtime.errors import OutOfResources

    from mirrorla_mm.ops.fused import operator, passes
    from mirrorla_mm.ops.options import Options

    q, k, v, theta = (x.requires_grad_() for x in (*torch.randn(3, 1, 2, 9, 8), torch.rand(2, 4)))
    options = Options(lam=0.5)
    expected = mirror_attention_reference(q, k, v, theta, lam=0.5)
    calls = []

    def forward(q, *_):
        calls.append('forward')
        return passes.empty_out(q).copy_(expected), passes.empty_statistics(q, options)

    def backward(*_, **__):
        raise OutOfResources(200_000, 100_000, 'shared memory')

    monkeypatch.setattr(passes, 'forward', forward)
    monkeypatch.setattr(passes, 'backward', backward)
    monkeypatch.setattr(operator, '_too_large', set())
    wanted = (q, v, theta)
    out = operator.mirror_attention_fused(q, k, v, theta, None, options)
    # An error comes again: nothing is remembered that would hide it.
    with pytest.raises(RuntimeWarning), warnings.catch_warnings():
        warnings.simplefilter('error')
        torch.autograd.grad(out, wanted, expected, retain_graph=True)
    assert not operator._too_large
    with pytest.warns(RuntimeWarning, match='does not fit .* the reference runs instead'):
        found = torch.autograd.grad(out, wanted, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, wanted, expected))
    again = operator.mirror_attention_fused(q, k, v, theta, None, options)
    assert torch.equal(again, mirror_attention_reference(q, k, v, theta, lam=0.5))
    assert calls == ['forward']
    monkeypatch.setattr(operator, '_too_large', set())
    out = operator.mirror_attention_fused(q, k, v, theta, None, options)
    with (
        pytest.warns(RuntimeWarning, match='does not fit'),
        pytest.raises(RuntimeError, match='differentiated once only'),
    ):
        torch.autograd.grad(out, wanted, expected, create_graph=True)


@needs_triton
@pytest.mark.parametrize('parts', [3, 4])
def test_the_references_gradients_of_a_packed_projection_are_joined(parts, monkeypatch):
    from triton.runtime.errors import OutOfResources

    from mirrorla_mm.ops.fused import operator, passes
    from mirrorla_mm.ops.options import Options

    packed, theta = torch.randn(1, 9, parts, 2, 8), torch.rand(2, 4)
    leaves = [x.requires_grad_() for x in (packed, theta)]

    def plain(packed, theta):
        q, k, v, *gate = packed.unbind(2)
        out = mirror_attention_reference(*(x.transpose(1, 2) for x in (q, k, v)), theta)
        return out, *(x.flatten(2) for x in (v, *gate))

    def gradients(out, v, gate=1.0):
        out = (out.transpose(1, 2).flatten(2) + v.roll(1, 1)) * gate
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    def forward(q, k, v, theta, *_):
        out = mirror_attention_reference(q, k, v, theta)
        return passes.empty_out(q).copy_(out), passes.empty_statistics(q, Options())

    def backward(*_, **__):
        raise OutOfResources(200_000, 100_000, 'shared memory')

    monkeypatch.setattr(passes, 'forward', forward)
    monkeypatch.setattr(passes, 'backward', backward)
    monkeypatch.setattr(operator, '_too_large', set())
    expected = gradients(*plain(*leaves))
    results = operator.mirror_attention_packed(*leaves, None, Options())
    with pytest.warns(RuntimeWarning, match='does not fit .* the reference runs instead'):
        torch.testing.assert_close(gradients(*results), expected)
    again = operator.mirror_attention_packed(*leaves, None, Options())
    torch.testing.assert_close(gradients(*again), expected)


@needs_triton
def test_the_kept_table_belongs_to_no_callers_memory_or_mode(monkeypatch):
    from mirrorla_mm.ops.fused import passes

    makers = []

    def make(*args, original=passes.make_rope_table):
        makers.append(threading.get_ident())
        return original(*args)

    monkeypatch.setattr(passes, 'make_rope_table', make)
    monkeypatch.setattr(passes, '_rope_tables', {})
    where = (256, 24, torch.float32, torch.device('cpu'))
    with torch.inference_mode(), torch.device('meta'), torch.autocast('cpu', torch.bfloat16):
        table = passes.rope_table(*where)
    assert not table.is_inference() and table.device.type == 'cpu' and table.dtype == torch.float32
    assert torch.equal(table, make(*where[:3], 'cpu')) and passes.rope_table(*where) is table
    assert makers[0] != threading.get_ident() and len(makers) == 2


@needs_triton
def test_a_captured_graph_reads_the_kept_table_and_keeps_none_of_its_own(monkeypatch):
    from mirrorla_mm.ops.fused import passes

    where = (256, 24, torch.float32, torch.device('cpu'))
    monkeypatch.setattr(passes, '_rope_tables', {})
    monkeypatch.setattr(passes, 'capturing', lambda device: True)
    in_graph = passes.rope_table(*where)
    assert passes._rope_tables == {}
    monkeypatch.setattr(passes, 'capturing', lambda device: False)
    kept = passes.rope_table(*where)
    assert kept is not in_graph and torch.equal(kept, in_graph)
    monkeypatch.setattr(passes, 'capturing', lambda device: True)
    assert passes.rope_table(*where) is kept


@needs_triton
@pytest.mark.parametrize('captured', [True, False])
def test_tuning_inside_a_capture_says_what_to_do(captured, monkeypatch):
    from mirrorla_mm.ops.fused import launching

    class Kernel(dict):
        fn = SimpleNamespace(arg_names=['q'])

        def __missing__(self, grid):
            def tune(**_):
                raise RuntimeError('operation not permitted when stream is capturing')

            return tune

    monkeypatch.setattr(launching, 'capturing', lambda device: captured)
    step = launching.Step(Kernel(), (1, 1, 1), {})
    expected = 'call it once before capturing' if captured else 'not permitted'
    for _ in range(2):  # and the lock is free again
        with pytest.raises(RuntimeError, match=expected):
            step({'q': torch.empty(1)}, 0)
