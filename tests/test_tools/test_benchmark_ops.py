"""The benchmark of the fused operator, gone through without a GPU and without its kernels."""

import importlib.util
import json
import sys

import pytest
import torch

from .conftest import REPOSITORY


@pytest.fixture
def benchmark(monkeypatch):
    """The program, with the reference in the place of the kernels."""
    pytest.importorskip('triton')
    from mirrorla_mm.ops import backend
    from mirrorla_mm.ops.fused import passes  # noqa: F401  before --toy asks for the interpreter

    path = REPOSITORY / 'tools/analysis_tools/benchmark_ops.py'
    spec = importlib.util.spec_from_file_location('benchmark_ops', path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'benchmark_ops', module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(backend._backends, 'triton', backend._backends['torch'])
    monkeypatch.setenv('TRITON_INTERPRET', '0')  # set by --toy, and put back afterwards
    return module


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

    monkeypatch.setattr(benchmark, 'measure', None)  # nothing is left to measure
    benchmark.main()
    assert json.loads((tmp_path / 'ops.json').read_text())['rows'] == found['rows']


def test_models_take_turns(benchmark, monkeypatch):
    made = {name: lambda: torch.nn.Conv2d(3, 2, 3) for name in ('a', 'b')}
    monkeypatch.setattr(benchmark, 'models', lambda: made)
    rows = benchmark.measure_models(benchmark.ToyClock(), 2, (8, 8), rounds=2)
    assert [(row.model, row.training) for row in rows] == [
        *(('a', True), ('b', True), ('a', False), ('b', False)),
    ]
    assert 'images/s' in benchmark.model_table(rows)


def test_numbers_of_another_device_are_not_mixed_in(benchmark, tmp_path, monkeypatch):
    (tmp_path / 'ops.json').write_text('{"device": "another", "rows": [], "models": []}')
    monkeypatch.setattr(
        sys, 'argv', ['benchmark_ops.py', '--toy', '--resume', '--out', str(tmp_path)]
    )
    with pytest.raises(SystemExit, match='was measured on another, not on toy'):
        benchmark.main()
