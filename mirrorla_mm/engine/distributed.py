"""Data parallelism on machines without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, init_dist, is_distributed, is_main_process
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed, nn

from ..registry import MODEL_WRAPPERS
from .errors import UserError

__all__ = [
    'CPUDistributedDataParallel',
    'decided_by_first',
    'join_processes',
    'use_gloo_without_gpu',
]

Decision = TypeVar('Decision')


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


def join_processes(cfg: Config) -> None:
    """Let the processes of a launch know one another before a runner does.

    Args:
        cfg (Config): With ``launcher``, and maybe ``env_cfg``.
    """
    if cfg.get('launcher', 'none') == 'none' or is_distributed():
        return
    env = cfg.get('env_cfg') or {}
    set_multi_processing(**env.get('mp_cfg', {}), distributed=True)  # init_dist has another default
    use_gloo_without_gpu(Config(dict(launcher=cfg.launcher)))
    if not is_distributed():
        init_dist(cfg.launcher, **(env.get('dist_cfg') or {}))


def decided_by_first(decide: Callable[[], Decision]) -> Decision:
    """What the first process finds, in all: not all processes need to see the same disk.

    Args:
        decide (Callable): Called in the first process alone.

    Raises:
        UserError: In all processes, if ``decide`` raises it.
        OSError: The same.
    """
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = decide()
        except (UserError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]
