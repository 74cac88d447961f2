"""Deploy mode in a test run."""

from copy import deepcopy

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..backbones.deploy import deploy
from ..registry import HOOKS


@HOOKS.register_module(force=True)
class DeployHook(Hook):
    """Fold what can be folded before testing, once the weights are loaded.

    Backbones without a deploy mode stay as they are.

    Args:
        dtype (str, optional): ``'bfloat16'`` to compute in it, see
            :func:`~mirrorla_mm.backbones.deploy.deploy`.
    """

    # After hooks that exchange the weights, such as EMA's.
    priority = 'VERY_LOW'

    def __init__(self, dtype: str | None = None) -> None:
        self.dtype = dtype

    def before_test_epoch(self, runner: Runner) -> None:
        # A copy: after the test an EMA's hook puts its weights back into a model that is whole.
        runner.model = deepcopy(runner.model)
        deploy(runner.model, self.dtype)
