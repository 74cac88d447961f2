"""Conclusions that the study's results allow."""

import math
from pathlib import Path

import pytest
import torch

from mirrorla_mm.analysis.study_runs import half_width, read_runs
from mirrorla_mm.engine.data import DataError
from mirrorla_mm.restoration.study import (
    ROWS,
    after_transfer,
    difference,
    plot,
    read_results,
    slot_facts,
    table,
    verdict,
)
from tests.test_restoration.toy import toy_host


def result(row, seed, *figures):
    images = {str(number): figure for number, figure in enumerate(figures)}
    settings = dict(start='authors')
    return dict(row=row, seed=seed, settings=settings, PSNR={'Set5': images}, dead=0.25, rank=3.5)


RESULTS = [
    result('relu', 0, 30.0, 31.0, 32.0),
    result('relu', 1, 30.2, 31.2, 32.2),
    result('mirror', 0, 30.1, 31.1, 32.1),
    result('mirror', 1, 30.31, 31.31, 32.31),
    result('lsa', 0, 29.0, 33.0, 30.0),
    result('elu', 0, 29.5, 30.4, 31.3),
]


def test_differences_are_paired_by_seed_and_by_image():
    found = difference('mirror', RESULTS, 'Set5')
    assert found.mean == pytest.approx(0.105)
    # Two seeds: t(0.975, 1) = 12.706, standard deviation 0.01 / sqrt(2).
    assert found.by_seed == pytest.approx(12.706 * 0.005, rel=1e-3)
    assert found.by_image == pytest.approx(0, abs=1e-9) and found.effect == 'helps'
    lonely = difference('lsa', RESULTS, 'Set5')
    assert lonely.by_seed == math.inf and lonely.width == lonely.by_image
    assert difference('nala', RESULTS, 'Set5') is None
    assert half_width([1.0]) == math.inf


def test_the_sentence_says_what_the_numbers_say(tmp_path):
    assert 'helps here: +0.105 ± 0.064 dB (95 %).' in verdict(RESULTS)
    # A seed alone tells nothing, however alike its images are.
    assert (
        'a single seed, what it does here: -0.600 ± 0.248 dB (95 %, over the images).'
        in verdict(RESULTS, [('elu', 'relu')])
    )
    worse = [
        result(r['row'], r['seed'], *(x - 1 for x in r['PSNR']['Set5'].values())) for r in RESULTS
    ]
    mirror_worse = [r for r in worse if r['row'] == 'mirror'] + RESULTS[:2]
    assert 'hurts here: -0.895' in verdict(mirror_worse)
    chance = [result('mirror', seed, *x) for seed, x in enumerate([(30, 31, 32), (31, 32, 33)])]
    assert 'nothing that can be told from chance' in verdict(RESULTS[:2] + chance)
    assert '+ mirror against LSA, the authors’ own leaves open' in verdict(
        RESULTS, [('mirror', 'lsa')]
    )
    text = table(RESULTS)
    assert '| ReLU + mirror | 2 | 31.205 | +0.105 | 0.064 | 0.000 | 25.0% | 3.50 |' in text
    assert 'inf' not in text + verdict(RESULTS, [('lsa', 'relu')])
    plot(RESULTS, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 1000


def test_verdicts_are_resolved_only_if_they_are_when_taken_together():
    alone, both = (
        verdict([dict(r, PSNR=dict.fromkeys(names, r['PSNR']['Set5'])) for r in RESULTS])
        for names in (['Set5'], ['Set5', 'Again'])
    )
    assert 'helps here: +0.105 ± 0.064 dB (95 %).' in alone
    # Two seeds: t(1 - 0.025 / 2, 1) = 25.452.
    assert both.count('± 0.127 dB (95 % of all 2 together).') == 2
    assert both.count('nothing that can be told from chance') == 2


@pytest.mark.parametrize('text', ['{"row": "relu", ', '[]', '{"row": "x", "seed": 0}', '{}'])
def test_files_that_hold_no_result_are_named(tmp_path, text):
    file = tmp_path / 'relu_seed-0.json'
    file.write_text(text)
    with pytest.raises(DataError, match='relu_seed-0.json holds no result'):
        read_results(tmp_path)
    assert read_runs([], list(ROWS)) == []


def test_facts_tell_clipping_from_the_rest():
    x = [torch.rand(1, 3, 12, 9)]
    relu, elu, softmax = (
        slot_facts(toy_host(attn_cfg=ROWS[name].attn_cfg), x)
        for name in ('relu', 'elu', 'softmax-w32')
    )
    assert relu['dead'] > 0.2 and elu['dead'] == softmax['dead'] == 0
    # Heads of 4 channels.
    assert 1 <= relu['rank'] <= 4 and 1 <= elu['rank'] <= 4


@pytest.mark.parametrize('study', ['.', '2000_iterations', 'from_scratch', 'transfer'])
def test_the_published_pages_are_what_their_runs_give(study):
    published = Path(__file__).resolve().parents[2] / 'docs/studies/super_resolution' / study
    results = read_results(published / 'runs')
    page = (published / 'results.md').read_text(encoding='utf-8')
    assert page.endswith(f'\n{table(results)}\n\n{verdict(results)}\n')
    before = after_transfer(results)
    assert len(before) == (len(results) if study == 'transfer' else 0)
    assert not before or f'\n{table(before)}\n\n{verdict(before)}\n' in page
