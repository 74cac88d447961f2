"""A warm-up that the training does not live through is told before it."""

import pytest
from torch.utils.data import DataLoader

from mirrorla_mm.engine.warm_up import WarmUpHook
from tests.test_engine.toy import ToyData, toy_runner


@pytest.fixture()
def warnings(tmp_path, monkeypatch):
    """What a training says of its schedule."""

    def of(schedule, work_dir='work', epochs=None, **settings):
        said = []
        runner = toy_runner(
            tmp_path / work_dir, param_scheduler=schedule, hooks=[WarmUpHook()], **settings
        )
        if epochs:
            runner._train_dataloader = DataLoader(ToyData(), batch_size=4)
            runner._train_loop = dict(by_epoch=True, max_epochs=epochs)
        monkeypatch.setattr(runner.logger, 'warning', lambda text, *_: said.append(text))
        runner.train()
        return [text for text in said if 'the training ends after' in text]

    return of


def rise(kind='LinearLR', **options):
    return dict(dict(type=kind, start_factor=0.1, by_epoch=False, begin=0, end=500), **options)


FALL = dict(type='PolyLR', by_epoch=False, begin=0, end=1000)


@pytest.mark.parametrize(
    ('schedule', 'told'),
    [
        ([FALL, rise()], 'LinearLR raises lr from iteration 0 to 500,'),
        (rise(), 'LinearLR raises lr from iteration 0 to 500,'),
        ([rise(end=2), rise(begin=2, end=9)], 'LinearLR raises lr from iteration 2 to 9,'),
        ([rise('LinearMomentum')], 'LinearMomentum raises momentum from iteration 0 to 500,'),
    ],
)
def test_a_rise_beyond_the_training_is_told_with_the_way_out(warnings, schedule, told):
    (said,) = warnings(schedule)
    assert said.startswith(f'{told} and the training ends after 8: train in a new work dir')
    assert 'a smaller `end` of that scheduler' in said


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (dict(by_epoch=False, end=500), 'from iteration 0 to 500, and the training ends after 8:'),
        (dict(by_epoch=True, end=5), 'from epoch 0 to 5, and the training ends after 2:'),
        (
            dict(by_epoch=True, end=5, convert_to_iter_based=True),
            'from iteration 0 to 20, and the training ends after 8:',
        ),
    ],
)
def test_a_rise_is_told_in_the_unit_of_the_schedule(warnings, options, told):
    (said,) = warnings([rise(**options)], epochs=2)
    assert told in said
    assert warnings([rise(**{**options, 'end': 2})], work_dir='new', epochs=2) == []


@pytest.mark.parametrize('schedule', [[rise(end=8), FALL], rise(start_factor=1.0, end_factor=0.1)])
def test_a_rise_within_the_training_and_a_fall_beyond_it_are_not_told(warnings, schedule):
    assert warnings(schedule) == []


def test_a_resumed_training_is_told_of_the_rise_that_it_keeps(warnings):
    assert len(warnings([rise()])) == 1
    (said,) = warnings([rise(end=2)], resume=True, max_iters=10)
    assert 'to 500, and the training ends after 10' in said
    assert warnings([rise(end=2)], work_dir='new', max_iters=10) == []
