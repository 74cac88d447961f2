"""The conclusions of the study from its results."""

import json
import math
from pathlib import Path

import pytest

from mirrorla_mm.analysis.study import (
    ROWS,
    against_baseline,
    compare,
    ordering,
    plot,
    read_results,
    results_table,
    scores_of,
)
from mirrorla_mm.registry import build_attention


def result(row: str, seed: int, score: float) -> dict:
    return dict(row=row, seed=seed, mIoU=score, aAcc=2 * score)


@pytest.mark.parametrize('name', ROWS)
def test_every_row_builds_what_it_says(name):
    module = build_attention(ROWS[name].attn_cfg, embed_dims=16, num_heads=2)
    reflection = getattr(module, 'reflection', None)
    assert (reflection is not None) == (ROWS[name].table == 'Tab. 8' or name == 'relu-mirror')
    if name == 'no-variance':
        assert not reflection.options['variance_aware']
    elif name == 'no-cross-head':
        assert reflection.u is None
    elif name.startswith('alpha'):
        assert reflection.options['alpha_max'] == math.pi / int(name[-1])
    elif name.startswith('lam'):
        assert reflection.options['lam'] == float(name[4:])


def test_interval_is_that_of_the_paired_t_test():
    pair = compare(
        'relu', 'softmax', {'relu': {0: 3.0, 1: 5.0, 2: 4.0}, 'softmax': {0: 1.0, 1: 1.0, 2: 1.0}}
    )
    assert pair.difference == pytest.approx(3)
    assert pair.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert pair.resolved


def test_rows_are_set_against_the_baseline_of_their_table_over_common_seeds():
    scores = {'mirror': {0: 9.0, 1: 8.0}, 'lam-0.5': {0: 7.0, 1: 7.0, 2: 1.0}, 'pola': {0: 1.0}}
    assert against_baseline('mirror', scores) == 'baseline'
    assert against_baseline('lam-0.5', scores) == f'-1.50 ± {12.706 * math.sqrt(0.5 / 2):.2f}'
    assert against_baseline('pola', scores) == '-'


def test_many_pairs_need_more_evidence_each():
    scores = {'relu': {0: 3.0, 1: 5.0, 2: 4.0}, 'softmax': {0: 1.0, 1: 1.0, 2: 1.0}}
    one, many = (compare('relu', 'softmax', scores, pairs=n) for n in (1, 3))
    assert many.half_width == pytest.approx(7.649 / math.sqrt(3), rel=1e-3)
    assert one.resolved and not many.resolved


def test_one_seed_resolves_nothing():
    assert not compare('relu', 'softmax', {'relu': {0: 9.0}, 'softmax': {0: 1.0}}).resolved


def test_verdict_follows_the_scores():
    names = ('relu-mirror', 'relu', 'softmax')
    ordered = {n: {s: 30.0 - 5 * i + 0.1 * s for s in range(3)} for i, n in enumerate(names)}
    assert ordering(ordered, 'Tab. 7').endswith("So the paper's ordering shows.")
    turned = dict(zip(names, reversed(ordered.values())))
    assert ordering(turned, 'Tab. 7').endswith('does not show at this scale.')
    noise = {n: {0: 1.0 + i, 1: 2.0, 2: 3.0 - i} for i, n in enumerate(names)}
    assert ordering(noise, 'Tab. 7').endswith('does not show at this scale.')
    assert 'no two rows' in ordering({'relu': {0: 1.0}}, 'Tab. 7')


def test_results_are_read_back_into_table_and_plot(tmp_path):
    for row, score in (('mirror', 20.0), ('relu', 10.0)):
        for seed in range(2):
            (tmp_path / row).mkdir(exist_ok=True)
            (tmp_path / row / f'seed-{seed}.json').write_text(
                json.dumps(result(row, seed, score + seed))
            )
    results = read_results(tmp_path)
    table = results_table(results)
    expected = (
        '| Tab. 7 | ReLU | 10.50 ± 0.71 | baseline | 21.00 ± 1.41 | 2 | 10.00, 11.00 | 81.8 |'
    )
    assert expected in table
    plot(results, tmp_path / 'plot.png', 'title')
    assert (tmp_path / 'plot.png').stat().st_size > 5000


def test_the_published_page_is_what_its_runs_give():
    published = Path(__file__).resolve().parents[2] / 'docs' / 'studies' / 'camvid'
    results = json.loads((published / 'results.json').read_text(encoding='utf-8'))
    verdicts = [ordering(scores_of(results), name) for name in ('Tab. 7', 'Tab. 8')]
    text = '\n\n'.join([results_table(results), *verdicts])
    assert (published / 'results.md').read_text(encoding='utf-8').endswith(f'\n{text}\n')
