"""benchmark.py from its command line: a table, saved figures, a drawing, and mistakes explained."""

import importlib.util
import json
import sys

import pytest
import torch

from mirrorla_mm.analysis.provenance import machine, provenance

from .conftest import REPOSITORY

TINY = ['--arch', 'xt', '--variants', 'eager', '--rounds', '1', '--threads', '1']


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The tool as a function of its options, run within a folder of its own."""
    path = REPOSITORY / 'tools/analysis_tools/benchmark.py'
    spec = importlib.util.spec_from_file_location('benchmark', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)

    def run(*options):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--no-memory', *options])
        module.main()

    run.module = module
    yield run
    torch.set_num_threads(threads)


def test_a_cut_run_goes_on_where_it_was_and_draws_all_sizes(run, tmp_path, capsys, monkeypatch):
    options = ['--arch', 'xt', '--variants', 'eager', 'deploy', '--peers', 'resnet50']
    options += ['--rounds', '1', '--threads', '1', '--json', 'found.json', '--shapes', '32x32']
    run(*options)
    first = json.loads((tmp_path / 'found.json').read_text())
    measured, measure = [], run.module.measure_latency

    def noted(subject, variants, size, rounds):
        measured.append(size)
        return measure(subject, variants, size, rounds)

    monkeypatch.setattr(run.module, 'measure_latency', noted)
    capsys.readouterr()
    run(*options, '48x64', '--resume', '--plot', 'speed.png')
    assert measured == [(48, 64)]
    assert capsys.readouterr().out.count('| eager |') == 2
    rows = json.loads((tmp_path / 'found.json').read_text())['rows']
    assert rows[:3] == first['rows'] and len(rows) == 6
    assert {row['commit'] for row in rows} == {provenance()['commit']}
    assert (tmp_path / 'speed.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(SystemExit):
        run(*options, '--resume', '--batch', '2')
    assert (
        'found.json holds results of other settings (batch 1, not 2): name'
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    'noted, said', [(['2026-02-03'] * 2, ', 2026-02-03'), (['2026-02-03', None], '')]
)
def test_the_drawing_names_the_days_that_the_file_notes_for_all_sizes(
    run, tmp_path, monkeypatch, noted, said
):
    run(*TINY, '--json', 'found.json', '--shapes', '32x32', '32x64')
    found = json.loads((tmp_path / 'found.json').read_text())
    for row, date in zip(found['rows'], noted):
        row['date'] = date
    if None in noted:  # as an earlier version left it
        del found['rows'][1]['date'], found['rows'][1]['commit']
    (tmp_path / 'found.json').write_text(json.dumps(found))
    titles = []
    monkeypatch.setattr(run.module, 'draw', lambda rows, file, title: titles.append(title))
    run(*TINY, '--json', 'found.json', '--shapes', '32x32', '--resume', '--plot', 'a.png')
    assert titles == [machine() + said]


@pytest.mark.parametrize(
    'text', ['[]', '{"rows": []}', '{"settings": {}, "rows": ["x"]}', 'no JSON']
)
def test_a_file_of_another_tool_is_not_gone_on_with(run, tmp_path, capsys, text):
    (tmp_path / 'other.json').write_text(text)
    with pytest.raises(SystemExit):
        run('--json', 'other.json', '--resume')
    assert 'other.json was not saved by this tool' in capsys.readouterr().err
    assert (tmp_path / 'other.json').read_text() == text


def test_a_device_that_is_not_here_is_one_sentence(run, capsys, monkeypatch):
    def absent(*_, **__):
        raise AssertionError('Torch not compiled with CUDA enabled')

    monkeypatch.setattr(torch, 'zeros', absent)
    with pytest.raises(SystemExit):
        run('--device', 'cuda')
    error = capsys.readouterr().err
    assert "The device 'cuda' cannot be used" in error and 'Traceback' not in error


def test_resume_asks_for_the_file_to_go_on_with(run, capsys):
    with pytest.raises(SystemExit):
        run('--resume')
    assert '--resume needs --json' in capsys.readouterr().err
