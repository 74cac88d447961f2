"""A word of warning about batch norms that are frozen before anything trained them."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..registry import HOOKS

__all__ = ['FrozenNormHook']


@HOOKS.register_module(force=True)
class FrozenNormHook(Hook):
    """Warns where ``norm_eval=True`` freezes batch norms at the statistics of a new model.

    Dense configs set it, as a backbone usually brings ImageNet's statistics along. Without weights
    the norms would normalise by mean 0 and variance 1 throughout, and the model hardly learns.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the norms, whose weights are loaded by now."""
        for name, module in runner.model.named_modules():
            count = sum(map(_is_untrained, module.modules()))
            if getattr(module, 'norm_eval', False) and count:
                name = name.removeprefix('module.')
                runner.logger.warning(
                    f'{name}.norm_eval=True freezes {count} batch norms at mean 0 and variance 1, '
                    f'which nothing has trained: give weights by model.{name}.init_cfg or '
                    f'load_from, or set --cfg-options model.{name}.norm_eval=False.'
                )


def _is_untrained(module: nn.Module) -> bool:
    """Whether a batch norm still has the statistics that it was made with."""
    return (
        isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not module.running_mean.any()
        and bool((module.running_var == 1).all())
    )
