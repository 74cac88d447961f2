"""The benchmark of the fused operator, gone through without a GPU and without its kernels."""

import importlib.util
import json
import subprocess
import sys
import warnings

import pytest
import torch
import torch._dynamo

from .conftest import REPOSITORY


@pytest.fixture
def benchmark(monkeypatch):
    """The program, with the reference in the place of the kernels."""
    pytest.importorskip('triton')
    from mirrorla_mm.analysis import plain_triton
    from mirrorla_mm.ops import backend, linear_attention
    from mirrorla_mm.ops.fused import passes  # noqa: F401  before --toy asks for the interpreter

    path = REPOSITORY / 'tools/analysis_tools/benchmark_ops.py'
    spec = importlib.util.spec_from_file_location('benchmark_ops', path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'benchmark_ops', module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(backend._backends, 'triton', backend._backends['torch'])
    monkeypatch.setattr(plain_triton, 'plain_linear_attention', linear_attention)
    monkeypatch.setenv('TRITON_INTERPRET', '0')  # set by --toy, and put back afterwards
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):  # likewise, by main
        yield module


def test_every_method_and_mode_gets_a_row_and_a_cut_run_goes_on(benchmark, tmp_path, monkeypatch):
    command = ['benchmark_ops.py', '--toy', '--resume', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', command)
    benchmark.main()
    found = json.loads((tmp_path / 'ops.json').read_text())
    rows = [benchmark.Row(**row) for row in found['rows']]
    methods = {row.method for row in rows}
    assert {'fused', 'eager', 'compiled', benchmark.IN_OPERATOR} <= methods
    for method in methods:
        kinds = {(row.mode, row.backward) for row in rows if row.method == method}
        assert len(kinds) == 4, method
    assert all((row.share is not None) == row.method.startswith('fused') for row in rows)
    page = (tmp_path / 'ops.md').read_text()
    assert page.count('forward + backward |') == len(rows) // 2
    assert 'mirror in the' in page and not list(tmp_path.glob('*.part'))
    assert found['failures'] == {} and '## Failed' not in page
    assert page.count('| not measured |') == len(benchmark.bars([], []))  # of its sizes, none

    monkeypatch.setattr(benchmark, 'measure', None)  # nothing is left to measure
    benchmark.main()
    assert json.loads((tmp_path / 'ops.json').read_text())['rows'] == found['rows']


def test_the_reference_is_compiled_for_every_size(benchmark, monkeypatch):
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(benchmark, 'COMPILER', backend)
    for side in range(2, 4 + torch._dynamo.config.recompile_limit):
        case = benchmark.Case(1, side, 16, torch.float32)
        qkv, theta, _ = benchmark.inputs(case, 'cpu')
        compiled.clear()
        benchmark.methods(case)['compiled'].run(*qkv, theta)
        assert compiled, f'{case} ran uncompiled'


def test_models_take_turns_and_one_that_fails_is_noted(benchmark, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise ValueError('no such layer\nand more')

    def missing():
        raise ImportError('mmdet is not installed')

    made = {name: lambda: torch.nn.Conv2d(3, 2, 3) for name in ('a', 'b')}
    made |= {'broken': Broken, 'missing': missing}
    monkeypatch.setattr(benchmark, 'models', lambda: made)
    failures = {}
    rows = benchmark.measure_models(benchmark.ToyClock(), 2, (8, 8), 2, failures)
    assert [(row.model, row.training) for row in rows] == [
        *(('a', True), ('b', True), ('a', False), ('b', False)),
    ]
    assert 'images/s' in benchmark.model_table(rows)
    assert failures == {
        'missing': 'ImportError: mmdet is not installed',
        'broken, training=True': 'ValueError: no such layer',
        'broken, training=False': 'ValueError: no such layer',
    }


def test_a_model_that_failed_is_measured_again_and_one_that_did_not_stays(
    benchmark, tmp_path, monkeypatch
):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise ValueError('not yet')

    made = dict.fromkeys('ab', lambda: torch.nn.Conv2d(3, 2, 3))
    command = ['benchmark_ops.py', '--toy', '--models', '--resume', '--minutes', '0']
    monkeypatch.setattr(sys, 'argv', [*command, '--out', str(tmp_path)])
    for found in (made | {'b': Broken}, made):
        monkeypatch.setattr(benchmark, 'models', lambda found=found: found)
        benchmark.main()
        page = json.loads((tmp_path / 'ops.json').read_text())
        rows = {(row['model'], row['training']) for row in page['models']}
        broken = {('b', True), ('b', False)} if found['b'] is Broken else set()
        assert rows == {(name, mode) for name in 'ab' for mode in (True, False)} - broken
        assert len(page['failures']) == len(broken)
    monkeypatch.setattr(benchmark, 'measure_models', None)  # nothing is left to measure
    benchmark.main()


def test_torch_triton_and_matplotlib_are_all_that_it_needs(tmp_path):
    pytest.importorskip('triton')
    program = f"""
import importlib.util, runpy, sys

HIDDEN = ('mmengine', 'mmcv', 'mmdet', 'mmseg')
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *_: None if name in HIDDEN else find_spec(name)
sys.modules.update(dict.fromkeys(HIDDEN))
sys.argv = ['benchmark_ops.py', '--toy', '--out', {str(tmp_path)!r}]
runpy.run_path({str(REPOSITORY / 'tools/analysis_tools/benchmark_ops.py')!r}, run_name='__main__')
"""
    ran = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {'ops.json', 'ops.md', 'ops.png'}


@pytest.mark.parametrize('option', ['--tokens', '--head-dims', '--total-tokens'])
def test_sizes_without_a_token_are_refused(benchmark, monkeypatch, capsys, option):
    monkeypatch.setattr(sys, 'argv', ['benchmark_ops.py', option, '0'])
    with pytest.raises(SystemExit):
        benchmark.parse_args()
    assert 'tokens and head dimensions are whole numbers from 1 on' in capsys.readouterr().err


def test_the_models_are_those_of_the_bars(benchmark):
    models = benchmark.models()
    assert {benchmark.MIRRORLA, benchmark.SWIN} <= models.keys()
    for name, make in models.items():
        assert 5e6 < sum(p.numel() for p in make().parameters()) < 4e7, name


def test_a_method_that_fails_is_noted_and_the_others_go_on(benchmark, monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError('CUDA out of memory.\nTried to')

    def product(q, k, v, theta):
        return q * v

    found = {'SDPA': (broken, product), 'eager': (product, product)}
    found = {name: benchmark.Method(*pair) for name, pair in found.items()}
    monkeypatch.setattr(benchmark, 'methods', lambda case: found)
    monkeypatch.setattr(benchmark, 'layers', lambda case: {})
    case, failures = benchmark.Case(1, 6, 16, torch.float32), {}
    wanted = benchmark.missing(case, [])
    rows = list(benchmark.measure(case, wanted, 1.0, benchmark.ToyClock(), failures))
    assert [(row.method, row.mode, row.backward) for row in rows] == [
        *(('eager', mode, backward) for backward in (False, True) for mode in benchmark.MODES)
    ]
    (failure,) = failures.values()
    assert failure == 'OutOfMemoryError: CUDA out of memory.'


def test_what_is_wrong_or_falls_back_is_not_timed(benchmark, tmp_path, monkeypatch):
    def off(case, original=benchmark.methods):
        found = original(case)
        run = found['fused, plain ReLU'].run
        found['fused, plain ReLU'] = found['eager']._replace(run=lambda *x: 1.001 * run(*x))
        return found

    def falls_back(case, original=benchmark.layers):
        def run(x, weight, theta):
            warnings.warn('The fused mirror attention does not fit', RuntimeWarning, stacklevel=2)
            return entries[benchmark.IN_OPERATOR].run(x, weight, theta)

        entries = original(case)
        return entries | {benchmark.IN_OPERATOR: entries[benchmark.IN_OPERATOR]._replace(run=run)}

    monkeypatch.setattr(benchmark, 'methods', off)
    monkeypatch.setattr(benchmark, 'layers', falls_back)
    monkeypatch.setattr(sys, 'argv', ['benchmark_ops.py', '--toy', '--out', str(tmp_path)])
    benchmark.main()
    found = json.loads((tmp_path / 'ops.json').read_text())
    timed = {row['method'] for row in found['rows']}
    assert {'fused', benchmark.IN_PROJECTION} <= timed
    assert not {'fused, plain ReLU', benchmark.IN_OPERATOR} & timed
    kinds = sorted(failure.split(':')[0] for failure in found['failures'].values())
    assert kinds == ['ArithmeticError', 'RuntimeWarning']


def test_a_head_dimension_whose_gradients_are_off_is_not_timed(benchmark, tmp_path, monkeypatch):
    def wrong(case, device):
        raise ArithmeticError('off')

    monkeypatch.setattr(benchmark, 'check', wrong)
    monkeypatch.setattr(sys, 'argv', ['benchmark_ops.py', '--toy', '--out', str(tmp_path)])
    benchmark.main()
    assert json.loads((tmp_path / 'ops.json').read_text())['rows'] == []


def test_bars_are_judged_by_the_worst_size(benchmark):
    def row(method, mode, backward, milliseconds, head_dim=64, tokens=2**16, batch=4, share=None):
        start = (tokens, batch, head_dim, 'bfloat16')
        return benchmark.Row(
            *start, method, mode, backward, milliseconds, 100.0 * milliseconds, None, share
        )

    rows = [
        row('fused', 'eager', False, 1.0, share=0.8),
        row('eager', 'eager', False, 6.0),
        row('compiled', 'eager', False, 1.2),
        row('SDPA', 'eager', False, 25.0),
        row('fused', 'eager', False, 1.0, head_dim=32, share=0.6),
        row('eager', 'eager', False, 5.5, head_dim=32),
        row('fused', 'eager', True, 1.0, share=0.6),
        row('eager', 'eager', True, 3.9),
        row('fused', 'graph', False, 0.9, share=0.9),
        row('fused', 'graph', False, 0.02, tokens=2**12, batch=2, share=0.1),
        row('eager', 'eager', False, 0.3, tokens=2**12, batch=2),
        row('eager', 'graph', False, 0.03, tokens=2**12, batch=2),
    ]
    models = [
        benchmark.ModelRow(name, training, speed, 1.0)
        for name, training, speed in (
            *((benchmark.MIRRORLA, True, 11.0), (benchmark.SWIN, True, 10.0)),
            (benchmark.MIRRORLA, False, 9.0),
        )
    ]
    cells = {bar.text: bar.cells[2:] for bar in benchmark.bars(rows, models)}
    assert cells == {
        'forward, B·H·N >= 2^20, times the eager reference': (
            '5.50 (N 65536, batch 4, d 32)', 'PASS',
        ),
        'forward, B·H·N >= 2^20, times the compiled one': ('1.20 (N 65536, batch 4, d 64)', 'FAIL'),
        'forward, B·H·N >= 2^20, share of the copy': ('0.60 (N 65536, batch 4, d 32)', 'FAIL'),
        'forward, 64 k tokens, times SDPA': ('25.00 (N 65536, batch 4, d 64)', 'PASS'),
        'forward + backward, B·H·N >= 2^20, times the eager reference': (
            '3.90 (N 65536, batch 4, d 64)', 'PASS',
        ),
        'forward + backward, B·H·N >= 2^20, times the compiled one': ('', 'not measured'),
        'forward + backward, B·H·N >= 2^20, share of the copy': (
            '0.60 (N 65536, batch 4, d 64)', 'PASS',
        ),
        'forward + backward, 64 k tokens, times SDPA': ('', 'not measured'),
        'forward as a graph, B·H·N >= 2^18, share of the copy': (
            '0.90 (N 65536, batch 4, d 64)', 'PASS',
        ),
        'forward as a graph, B·H·N = 2^15, times the eager calls': (
            '15.00 (N 4096, batch 2, d 64)', 'PASS',
        ),
        'peak memory of training, B·H·N >= 2^20, eager by ours': (
            '3.90 (N 65536, batch 4, d 64)', 'FAIL',
        ),
        'training, images per second, times Swin-T': ('1.10 (800 x 1280, batch 16)', 'PASS'),
        'inference, images per second, times Swin-T': ('', 'not measured'),
    }  # fmt: skip


def test_the_default_sizes_are_those_of_the_bars(benchmark, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['benchmark_ops.py'])
    cases = benchmark.cases(benchmark.parse_args())
    sizes = {case.batch * benchmark.HEADS * case.side**2 for case in cases}
    assert {2**15, 2**18, 2**20} <= sizes
    assert {case.head_dim for case in cases if case.compiles} == {32, 48, 64, 96}
    assert any(case.compiles and case.shape[0] * case.shape[1] * 2**16 >= 2**20 for case in cases)


def test_what_failed_is_measured_again_and_the_rest_is_kept(benchmark, tmp_path, monkeypatch):
    def broken(x, weight, theta):
        raise ValueError('not yet')

    def entries(case, original=benchmark.layers):
        found = original(case)
        return found | {
            benchmark.IN_PROJECTION: found[benchmark.IN_PROJECTION]._replace(run=broken)
        }

    command = ['benchmark_ops.py', '--toy', '--resume', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', command)
    with monkeypatch.context() as patched:
        patched.setattr(benchmark, 'layers', entries)
        benchmark.main()
        path = tmp_path / 'ops.json'
        first = json.loads(path.read_text())
        assert list(first['failures'].values()) == ['ValueError: not yet']
        path.write_text(json.dumps(first | {'date': '2020-01-01'}))
        measured = []
        patched.setattr(benchmark, 'measure', lambda *_: measured.append(1) or [])
        benchmark.main()
        assert measured and json.loads(path.read_text())['failures'] == first['failures']
    benchmark.main()
    second = json.loads(path.read_text())
    rows = [(row['method'], row['mode'], row['backward']) for row in second['rows']]
    assert second['failures'] == {} and len(set(rows)) == len(rows) == len(first['rows']) + 4
    assert second['rows'][: len(first['rows'])] == first['rows']
    assert second['copy_gigabytes_per_second'] == first['copy_gigabytes_per_second']
    assert second['date'] == f'2020-01-01; {first["date"]}'


@pytest.mark.parametrize('field', ['device', 'torch', 'triton'])
def test_numbers_of_another_device_or_version_are_not_mixed_in(
    benchmark, tmp_path, monkeypatch, field
):
    command = ['benchmark_ops.py', '--toy', '--minutes', '0', '--resume', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', command)
    benchmark.main()
    path = tmp_path / 'ops.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: 'another'}))
    with pytest.raises(SystemExit, match=f'ops.json was measured on {field} another, not on .*: m'):
        benchmark.main()


def test_nothing_begins_after_its_minutes(benchmark, tmp_path, monkeypatch, capsys):
    command = ['benchmark_ops.py', '--toy', '--minutes', '0', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', command)
    benchmark.main()
    assert '0 minutes are over; --resume goes on at Case(batch=1, side=6' in capsys.readouterr().out
    assert json.loads((tmp_path / 'ops.json').read_text())['rows'] == []


def test_the_clock_of_a_gpu(benchmark, monkeypatch):
    """On a torch that only pretends: every name that it uses is there, and calls are counted."""
    from unittest.mock import MagicMock

    event = MagicMock()
    event.elapsed_time.return_value = 8.0
    graph, calls = MagicMock(), []
    for name, value in {
        'Event': lambda enable_timing: event,
        'CUDAGraph': lambda: graph,
        'synchronize': lambda: None,
        'Stream': MagicMock,
        'stream': MagicMock(),
        'graph': MagicMock(),
        'memory_allocated': lambda: 2**20,
        'max_memory_allocated': lambda: 3 * 2**20,
        'reset_peak_memory_stats': lambda: None,
        'get_device_name': lambda: 'a GPU',
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)
    clock = benchmark.CudaClock()
    assert clock.eager(lambda: calls.append(0)) == 8.0 / 2  # 20 ms hold two calls of 8
    assert len(calls) == 1 + 2 * clock.rounds
    assert clock.graph(lambda: calls.append(0)) == 4.0 and graph.replay.call_count == 2 + 14
    assert clock.peak(lambda: calls.append(0)) == 2.0 and clock.name() == 'a GPU'
