"""Parts that the command lines for training and testing share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmcv.ops import get_compiling_cuda_version
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..stack import BUILD_COMMAND
from .configs import ConfigOptions, read_config
from .dataset_checks import check_datasets
from .distributed import use_gloo_without_gpu
from .errors import UserError
from .workers import end_workers_with_run

__all__ = [
    'add_common_arguments',
    'build_runner',
    'gpu_without_ops',
    'is_first_process',
    'load_config',
    'task_scope',
]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that both command lines have, named as in mmdet and mmseg."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='override settings of the config: a.b=1 c="[1,2]" d=x,y; no spaces in a value',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes it on; torchrun sets the environment instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace, needs: Sequence[str] = ('model',)) -> Config:
    """Read the config and apply the common options.

    Args:
        args (argparse.Namespace): With ``config``, see :func:`.read_config`, and with what
            :func:`add_common_arguments` added.
        needs (Sequence[str]): Entries that the config has to have.

    Returns:
        Config: With ``launcher`` and ``work_dir`` set; the latter by the option, else by the
        config, else ``work_dirs/<name of the config>``.

    Raises:
        UserError: If there is no such config, it cannot be read or lacks an entry.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options, needs)
    cfg.launcher = args.launcher
    cfg.work_dir = (
        args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    )
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, on CPUs too where it was launched on several.

    Args:
        cfg (Config): From :func:`load_config`.

    Returns:
        Runner: Its data sets will name the files that they cannot read.

    Raises:
        UserError: If a detector would run on a GPU that mmcv's ops were not compiled for, or a
            sharded model in a single process that nothing launched, or if the config needs a
            package that is not installed.
    """
    if 'strategy' in cfg and cfg.launcher == 'none':
        raise UserError(
            'This config shares the model out over processes: start it by tools/dist_train.sh or '
            'tools/dist_test.sh with their number. A checkpoint of it also tests with the config '
            'that it is based on.'
        )
    if gpu_without_ops() and task_scope(cfg) == 'mmdet':
        raise UserError(
            'This mmcv was compiled without CUDA, and a detector needs its ops (NMS, RoIAlign, '
            'focal loss) on the GPU: set CUDA_VISIBLE_DEVICES= to run on the CPU, or, with nvcc on '
            f'PATH, run {BUILD_COMMAND}'
        )
    check_datasets()
    use_gloo_without_gpu(cfg)
    end_workers_with_run(cfg)
    try:
        return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    except ImportError as error:  # of TensorBoard, say
        raise UserError(f'This config needs a package that is not installed: {error}') from error


def is_first_process(launcher: str) -> bool:
    """Whether this is the process with rank 0, before the processes know one another.

    Args:
        launcher (str): ``none``, ``pytorch``, ``slurm`` or ``mpi``.
    """
    ranks = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
    return int(os.environ.get(ranks.get(launcher, ''), 0)) == 0


def gpu_without_ops() -> bool:
    """Whether there is a GPU that mmcv's ops (NMS, focal loss) were not compiled for."""
    return torch.cuda.is_available() and get_compiling_cuda_version() == 'not available'


def task_scope(cfg: Config) -> str:
    """Whose task a config is, by the metric that it is tested with: ``'mmdet'``, ``'mmseg'``,
    ``'mmpretrain'``, or this package for super-resolution."""
    metrics = cfg.get('test_evaluator') or {}
    first = metrics[0] if isinstance(metrics, (list, tuple)) else metrics
    kind = first.get('type', '')
    module = kind if isinstance(kind, str) else kind.__module__
    return module.split('.')[0] if '.' in module else cfg.get('default_scope', '')
