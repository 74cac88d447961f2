"""Data parallelism: on machines without a GPU, and parameters that the loss does not use."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.runner import Runner
from torch import distributed, nn

from ..registry import MODEL_WRAPPERS
from .errors import UserError

__all__ = ['CPUDistributedDataParallel', 'name_unused_parameters', 'use_gloo_without_gpu']

SHOWN = 5


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


@contextlib.contextmanager
def name_unused_parameters(runner: Runner) -> Iterator[None]:
    """Say which parameters the loss does not use, where data parallelism stops at them.

    torch gives their numbers alone, and only at the second iteration.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r'did not receive grad for rank \d+: ([\d ]+)', str(error))
        if found is None:
            raise
        model = runner.model.module
        names = [name for name, value in model.named_parameters() if value.requires_grad]
        unused = [names[int(number)] for number in found[1].split()]
        shown = ', '.join(unused[:SHOWN]) + (', ...' if len(unused) > SHOWN else '')
        raise UserError(
            f'{len(unused)} parameters have no part in the loss, and the processes wait for their '
            f'gradients: {shown}. Take them out of the model (out_indices of a backbone names the '
            'stages that the neck or head uses), or set --cfg-options find_unused_parameters=True.'
        ) from error
