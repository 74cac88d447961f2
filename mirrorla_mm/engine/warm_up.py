"""A word of warning about a schedule that still rises when the training ends."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.optim.scheduler import LinearParamScheduler
from mmengine.runner import Runner

from ..registry import HOOKS

__all__ = ['WarmUpHook']


@HOOKS.register_module(force=True)
class WarmUpHook(Hook):
    """Warns where a linear warm-up ends after the training.

    Recipes count it in iterations, of which a small data set has few: its model would be trained
    with a fraction of the learning rate, or hardly at all.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the schedules as they will be used: a resumed one is that of the checkpoint."""
        for schedule in _schedules(runner):
            unit, length = (
                ('epoch', runner.max_epochs)
                if schedule.by_epoch
                else ('iteration', runner.max_iters)
            )
            if schedule.start_factor < schedule.end_factor and schedule.end > length:
                runner.logger.warning(
                    f'{type(schedule).__name__} raises {schedule.param_name} from {unit} '
                    f'{schedule.begin} to {schedule.end}, and the training ends after {length}: '
                    'train in a new work dir with a smaller `end` of that scheduler, as a resumed '
                    'training keeps it.'
                )


def _schedules(runner: Runner) -> list[LinearParamScheduler]:
    """The linear schedules of all optimizers."""
    found = runner.param_schedulers or []
    lists = found.values() if isinstance(found, dict) else [found]
    return [s for schedules in lists for s in schedules if isinstance(s, LinearParamScheduler)]
