"""Sharded training (FSDP), with torch 2.1 and later and on CPUs."""

from __future__ import annotations

from typing import Any

from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.device import get_device
from torch.distributed.fsdp import FullyShardedDataParallel

from ..registry import STRATEGIES
from .amp import is_amp

__all__ = ['FSDPStrategy']

# What 'full' is, but for the offloading to the CPU: of what is there already torch would keep
# memory that it frees or uses again.
FULL_ON_CPU = {
    'state_dict_type': 'FULL_STATE_DICT',
    'state_dict_config': {'type': 'FullStateDictConfig', 'offload_to_cpu': False},
    'optim_state_dict_config': {'type': 'FullOptimStateDictConfig', 'offload_to_cpu': False},
}


@STRATEGIES.register_module(force=True)
class FSDPStrategy(MMEngineFSDPStrategy):
    """mmengine's ``FSDPStrategy``, which resumes with torch 2.1 and later, and runs on CPUs.

    Args:
        model_wrapper (dict, optional): Options of ``MMFullyShardedDataParallel``.
        state_dict_cfg (str | dict): ``'full'``: whole weights and optimizer states in one file.
        **kwargs: Options of :class:`mmengine._strategy.FSDPStrategy`.
    """

    def __init__(
        self,
        *,
        model_wrapper: dict | None = None,
        state_dict_cfg: str | dict = 'full',
        **kwargs: Any,
    ) -> None:
        if get_device() == 'cpu':
            model_wrapper = {'device_id': 'cpu', **(model_wrapper or {})}
            state_dict_cfg = FULL_ON_CPU if state_dict_cfg == 'full' else state_dict_cfg
        super().__init__(model_wrapper=model_wrapper, state_dict_cfg=state_dict_cfg, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: Any, model: Any = None) -> Any:
        """Scale the loss for all shards alike; mmengine's does so under its own name alone."""
        if isinstance(optim_wrapper, dict) and is_amp(optim_wrapper.get('type')):
            optim_wrapper.setdefault('use_fsdp', True)
        return super().build_optim_wrapper(optim_wrapper, model)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a whole optimizer state; mmengine's gives torch the arguments in their old order."""
        optimizer = self.optim_wrapper.optimizer
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(shards)
