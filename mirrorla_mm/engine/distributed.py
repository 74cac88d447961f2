"""Sharded training, and distributed runs on machines without a GPU."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..registry import STRATEGIES

__all__ = ['CPUDistributedDataParallel', 'FSDPStrategy', 'use_gloo_without_gpu']

# What 'full' is, but for the offloading to the CPU: of what is there already torch would keep
# memory that it frees or uses again.
FULL_ON_CPU = {
    'state_dict_type': 'FULL_STATE_DICT',
    'state_dict_config': {'type': 'FullStateDictConfig', 'offload_to_cpu': False},
    'optim_state_dict_config': {'type': 'FullOptimStateDictConfig', 'offload_to_cpu': False},
}


@MODEL_WRAPPERS.register_module(force=True)
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """``MMDistributedDataParallel`` for models on the CPU, which have no device to be bound to.

    There is no synchronised batch norm on CPUs: each process normalises by its own batch.

    Args:
        module (nn.Module): The model.
        device_ids (list, optional): What mmengine passes; not used.
        **kwargs: Options of :class:`torch.nn.parallel.DistributedDataParallel`.
    """

    def __init__(self, module: nn.Module, device_ids: list | None = None, **kwargs: Any) -> None:
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()):
            print_log(
                'There is no SyncBN on CPUs: each process normalises by its own batch.',
                logger='current',
                level=logging.WARNING,
            )
        super().__init__(module=revert_sync_batchnorm(module), **kwargs)


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

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a whole optimizer state; mmengine's gives torch the arguments in their old order."""
        optimizer = self.optim_wrapper.optimizer
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(shards)


def use_gloo_without_gpu(cfg: Config) -> None:
    """Let a config that was launched by torchrun run on CPUs.

    mmengine binds each process to a GPU before anything else, unless the process group exists.

    Args:
        cfg (Config): The config of the run, changed in place.
    """
    if cfg.launcher != 'pytorch' or get_device() != 'cpu':
        return
    if not distributed.is_initialized():
        distributed.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        {
            'type': 'CPUDistributedDataParallel',
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        },
    )
    torch.set_num_threads(1)
