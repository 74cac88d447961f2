"""A word of warning about a learning rate that still rises when the training ends."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.optim.scheduler import LinearParamScheduler
from mmengine.runner import Runner

from ..registry import HOOKS

__all__ = ['WarmUpHook']


@HOOKS.register_module(force=True)
class WarmUpHook(Hook):
    """Warns where the warm-up of the schedule is longer than the training.

    Recipes count it in iterations, of which a small data set has few: its model would be trained
    with a fraction of the learning rate, or hardly at all.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the schedules, whose lengths are in iterations by now."""
        schedules = runner.param_schedulers
        for index, schedule in enumerate(schedules if isinstance(schedules, list) else []):
            if _rises(schedule) and schedule.end > runner.max_iters:
                runner.logger.warning(
                    f'The learning rate rises for {schedule.end} iterations, and the training ends '
                    f'after {runner.max_iters}: end the rise sooner, such as by --cfg-options '
                    f'param_scheduler.{index}.end={max(2, runner.max_iters // 10)}.'
                )


def _rises(schedule: object) -> bool:
    return (
        isinstance(schedule, LinearParamScheduler)
        and not schedule.by_epoch
        and schedule.start_factor < schedule.end_factor
    )
