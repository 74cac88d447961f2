"""The study: its distance, its pairs, and what it may say."""

import json
from pathlib import Path

import pytest
import torch

from mirrorla_mm.diffusion.study import (
    Judge,
    drawings,
    frechet_distance,
    ratios,
    table,
    verdict,
)


def result(arm, seed, mse, accuracy=0.5):
    return dict(
        arm=arm, seed=seed, mse=mse, accuracy=accuracy, fd=2.0, fd_of_real=1.0, parameters=7,
        accuracy_of_real=1.0,
    )  # fmt: skip


RESULTS = [
    result('softmax', 0, 0.20),
    result('softmax', 1, 0.22),
    result('control', 0, 0.21),
    result('control', 1, 0.23),
    result('mirror', 0, 0.205),
    result('mirror', 1, 0.2233),
]


def test_distance_of_normal_features_is_the_formula():
    torch.manual_seed(0)
    x = torch.randn(4000, 3, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + torch.tensor([3.0, 0, 4])) == pytest.approx(25)
    # Covariances that commute: the sum of (s1 - s2)^2.
    scales = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    assert frechet_distance(x, x * scales) == pytest.approx(1.25)


def test_losses_are_paired_by_seed():
    assert ratios(RESULTS, 'mirror') == pytest.approx([1.025, 1.015])
    assert ratios([*RESULTS, result('relu', 7, 1.0)], 'relu') == []
    lone = [
        result('mirror', 5, 0.1),
        *(r for r in RESULTS if (r['arm'], r['seed']) != ('control', 0)),
    ]
    assert ratios(lone, 'mirror', 'control') == pytest.approx([0.2233 / 0.23])
    assert 'the loss is -2.9% (one seed)' in verdict(lone)


def test_the_sentence_claims_what_the_numbers_allow():
    said = verdict(RESULTS)
    assert 'obeys the class (50%, chance is 17%)' in said and '1.020 times that of softmax' in said
    assert 'cannot be told from chance' in said  # -2.4 and -2.9 % with two seeds
    random = [dict(r, accuracy=0.2) for r in RESULTS]
    assert 'does not obey the class' in verdict(random)
    assert verdict(RESULTS[:4]) == ''
    assert 'diverge' not in verdict([dict(r, mse=r['mse'] * 9) for r in RESULTS])
    assert '| mirror + gate + lepe | 2 | 7 |' in table(RESULTS)
    assert table(RESULTS).endswith('| real drawings |  |  |  |  | 1.000 | 1.00 |')


def test_verdicts_that_are_read_together_ask_for_more():
    """1.5 % ± 1.3 % alone, ± 2.5 % as one of two."""
    pairs = [(arm, seed) for arm in ('softmax', 'control') for seed in (0, 1)]
    results = [result(*pair, 0.2) for pair in pairs]
    results += [result('mirror', seed, 0.2 * ratio) for seed, ratio in enumerate((0.984, 0.986))]
    assert 'is -1.5% (± 1.3%, 95 % over the seeds), which can be' in verdict(results)
    assert (
        'is -1.5% (± 2.5%, 95 % over the seeds for 2 comparisons together), which cannot be'
        in verdict(results, comparisons=2)
    )


def test_drawings_are_real_images_and_the_judge_has_features():
    images, labels = drawings(12, 5)
    assert images.shape == (12, 3, 32, 32) and labels.tolist() == [*range(6), *range(6)]
    assert images.min() >= -1 and images.max() <= 1
    assert Judge().features(images).shape == (12, 64)
    assert 0 <= Judge().accuracy(images, labels) <= 1


@pytest.mark.parametrize('name', ['.', 'patch-4'])
def test_the_published_page_is_what_its_runs_give(name):
    published = Path(__file__).resolve().parents[2] / 'docs' / 'studies' / 'diffusion' / name
    results = json.loads((published / 'results.json').read_text(encoding='utf-8'))
    # Two hosts, and a verdict on each.
    page = (published / 'results.md').read_text(encoding='utf-8')
    assert 'What follows ± is half of a 95 % interval' in page
    assert page.endswith(f'\n{table(results)}\n\n{verdict(results, comparisons=2)}\n')
