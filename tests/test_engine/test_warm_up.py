"""A learning rate that never reaches its height is told before the training."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import LinearLR, PolyLR

from mirrorla_mm.engine.warm_up import WarmUpHook


def warnings(max_iters: int, *schedules: tuple[type, dict]) -> list[str]:
    said: list[str] = []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    WarmUpHook().before_train(
        SimpleNamespace(
            max_iters=max_iters,
            param_schedulers=[kind(optimizer, **options) for kind, options in schedules],
            logger=SimpleNamespace(warning=said.append),
        )
    )
    return said


WARM_UP = (LinearLR, dict(start_factor=0.001, by_epoch=False, begin=0, end=500))
FALL = (PolyLR, dict(by_epoch=False, begin=0, end=1000))


@pytest.mark.parametrize(('iterations', 'end'), [(300, 30), (6, 2)])
def test_a_rise_longer_than_the_training_is_told_with_the_way_out(iterations, end):
    (said,) = warnings(iterations, FALL, WARM_UP)
    assert f'rises for 500 iterations, and the training ends after {iterations}' in said
    assert f'--cfg-options param_scheduler.1.end={end}.' in said


def test_a_rise_within_the_training_and_a_fall_beyond_it_are_not():
    assert warnings(500, WARM_UP, FALL) == []
    falling = (LinearLR, dict(start_factor=1.0, end_factor=0.1, by_epoch=False, end=500))
    assert warnings(300, falling) == []
