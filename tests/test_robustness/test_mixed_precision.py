"""Half precision at ten times the learning rate; at length in tools/studies/amp_stability.py."""

from statistics import mean

import pytest
import torch

from mirrorla_mm.analysis.stability import train


@pytest.mark.slow
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float16))
def test_training_stays_finite_and_learns(dtype):
    result = train(dict(type='MirrorAttention'), dtype, steps=40)
    assert result.first_bad is None and len(result.losses) == 40
    assert mean(result.losses[-5:]) < 0.9 * mean(result.losses[:5])
