"""The study: what may be concluded, and the command at toy size."""

import math

import pytest

from mirrorla_mm.restoration.study import difference, half_width, plot, table, verdict


def result(row, seed, *figures):
    images = {str(number): figure for number, figure in enumerate(figures)}
    return dict(row=row, seed=seed, PSNR={'Set5': images})


RESULTS = [
    result('relu', 0, 30.0, 31.0, 32.0),
    result('relu', 1, 30.2, 31.2, 32.2),
    result('mirror', 0, 30.1, 31.1, 32.1),
    result('mirror', 1, 30.31, 31.31, 32.31),
    result('lsa', 0, 29.0, 33.0, 30.0),
]


def test_differences_are_paired_by_seed_and_by_image():
    found = difference('mirror', RESULTS, 'Set5')
    assert found.mean == pytest.approx(0.105)
    # Two seeds: t(0.975, 1) = 12.706, standard deviation 0.01 / sqrt(2).
    assert found.by_seed == pytest.approx(12.706 * 0.005, rel=1e-3)
    assert found.by_image == pytest.approx(0, abs=1e-9) and found.resolved
    lonely = difference('lsa', RESULTS, 'Set5')
    assert lonely.by_seed == math.inf and not lonely.resolved
    assert difference('elu', RESULTS, 'Set5') is None
    assert half_width([1.0]) == math.inf


def test_the_sentence_says_what_the_numbers_say(tmp_path):
    assert 'helps here: +0.105' in verdict(RESULTS)
    assert 'nothing that can be told from chance' in verdict(RESULTS, 'lsa')
    assert '| ReLU + mirror | 2 | 31.205 | +0.105 |' in table(RESULTS)
    plot(RESULTS, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 1000
