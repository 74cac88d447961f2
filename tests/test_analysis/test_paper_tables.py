"""The paper's cells that need no training, and the page that shows them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorla_mm.analysis.flops import Complexity
from mirrorla_mm.analysis.paper_data import TABLES, Cause, Row
from mirrorla_mm.analysis.paper_tables import _cell, _text, count_row, is_countable, is_ours, render

ROOT = Path(__file__).parents[2]


def test_page_is_what_the_configs_give_and_our_cells_are_reproduced(monkeypatch):
    results = []

    def recorded(row, table, configs):
        results.append(count_row(row, table, configs))
        return results[-1]

    monkeypatch.setattr('mirrorla_mm.analysis.paper_tables.count_row', recorded)
    page = (ROOT / 'docs' / 'paper_tables.md').read_text(encoding='utf-8')
    assert render(ROOT / 'configs') == page, 'stale: run tools/analysis_tools/paper_tables.py'
    ours = [result for result in results if is_ours(result.row)]
    assert len(ours) == sum(is_ours(r) and is_countable(r) for t in TABLES for r in t.rows)
    for result in ours:
        for cell in (result.params, result.flops):
            assert cell.status in ('reproduced', 'misprint'), result.row
        assert result.linear.total < result.paper.total
        assert result.linear.layers == result.paper.layers
    for result in results:
        for cell in (result.params, result.flops):
            assert (cell.status == 'differs') == (cell.cause is not None), result.row
    recounts = [result.flops for result in results if result.flops.recount is not None]
    assert len(recounts) == sum(
        c.countable for t in TABLES for r in t.rows for c in r.causes.values()
    )
    for cell in recounts:
        assert cell.recount == pytest.approx(cell.paper, rel=0.01)


@pytest.mark.parametrize(
    ('paper', 'ours', 'status'),
    [
        (200, 200.4, 'reproduced'),
        (200, 202.1, 'differs'),
        (14, 13.51, 'reproduced'),
        (14, 13.4, 'differs'),
        (0.6, 0.62, 'reproduced'),
        (0.6, 0.66, 'differs'),
    ],
)
def test_flops_count_within_a_percent_or_half_a_digit(paper, ours, status):
    row = Row('x', 'x.py', 1, paper)
    assert _cell(row, 'flops', dict(total=ours)).status == status


def test_a_misprint_says_why():
    row = Row('x', 'x.py', 1, 129, misprints=dict(flops='another model'))
    cell = _cell(row, 'flops', dict(layers=218.7))
    assert (cell.status, cell.note) == ('misprint', 'another model')


def test_a_cell_that_differs_says_why():
    row = Row('x', 'x.py', 1, 129, causes=dict(flops=Cause('another head')))
    cell = _cell(row, 'flops', dict(layers=218.7))
    notes = []
    assert _text(cell, notes).endswith('[1]') and notes == ['another head']
    _text(replace(cell, recount=129.4), notes)
    assert notes[1] == 'another head 129.4'


def test_costs_add_up():
    assert Complexity(1, 2, 3) + Complexity(10, 20, 30) == Complexity(11, 22, 33)


@pytest.mark.parametrize(
    'row', [row for table in TABLES for row in table.rows], ids=lambda row: row.method
)
def test_every_row_names_a_config(row):
    assert (ROOT / 'configs' / row.config).is_file()


def test_get_flops_prints_both_counts():
    done = subprocess.run(
        [sys.executable, 'tools/analysis_tools/get_flops.py']
        + ['configs/efficientvit_head/mirrorla-t_efficientvit-head_4xb4-160k_ade20k-512x512.py'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '512x512' in done.stdout
    assert '13.56' in done.stdout
