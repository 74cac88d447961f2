"""Data parallelism on machines without a GPU."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import distributed, nn

from ..registry import MODEL_WRAPPERS

__all__ = ['CPUDistributedDataParallel', 'use_gloo_without_gpu']


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
            'type': 'mirrorla_mm.CPUDistributedDataParallel',
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        },
    )
    torch.set_num_threads(1)
