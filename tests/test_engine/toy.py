"""A model that trains in milliseconds, with every kind of state that a run of mmengine can have."""

from __future__ import annotations

import itertools

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

_names = itertools.count()


class ToyModel(BaseModel):
    """Linear regression behind a batch norm."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 1)

    def forward(self, x, y, mode):
        error = self.head(self.norm(x)) - y
        return {'loss': error.square().mean()} if mode == 'loss' else list(error)


class ToyData(Dataset):
    """Sums of random numbers."""

    metainfo = {'classes': ('sum',)}

    def __len__(self):
        return 16

    def __getitem__(self, index):
        x = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return x, x.sum()[None]


class ToyMetric(BaseMetric):
    """Reports the scores of a list, one a validation, and counts them.

    Args:
        scores (list[float]): What to report; the last again and again.
    """

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores
        self.validations = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.validations += 1
        return {'acc': self.scores[min(self.validations, len(self.scores)) - 1]}


class LossRecorder(Hook):
    """Keeps the loss of every iteration."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = outputs['loss'].item()


class Killed(Exception):
    """Stands for a signal that no process survives."""


def validation(interval: int, *metrics: ToyMetric) -> dict:
    """Options of ``toy_runner`` that validate."""
    return {
        'val_dataloader': DataLoader(ToyData(), batch_size=16),
        'val_evaluator': list(metrics),
        'val_cfg': {},
        'val_interval': interval,
    }


def toy_runner(
    work_dir,
    max_iters=8,
    checkpoint=None,
    val_interval=1000,
    hooks=(),
    param_scheduler=None,
    optimizer=None,
    **kwargs,
) -> Runner:
    """A runner that saves every second iteration; further options as for ``Runner``."""
    torch.manual_seed(0)
    return Runner(
        model=ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(
            ToyData(), batch_size=4, sampler=InfiniteSampler(ToyData(), seed=3)
        ),
        train_cfg={'by_epoch': False, 'max_iters': max_iters, 'val_interval': val_interval},
        optim_wrapper={
            'type': 'OptimWrapper',
            'optimizer': optimizer or {'type': 'AdamW', 'lr': 0.1},
            'accumulative_counts': 2,
        },
        param_scheduler=param_scheduler
        or [
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 3},
            {'type': 'MultiStepLR', 'milestones': [4, 6], 'by_epoch': False},
            {'type': 'PolyLR', 'by_epoch': False, 'end': 8},
        ],
        default_hooks={
            'checkpoint': {
                'type': 'mirrorla_mm.CheckpointHook',
                'interval': 2,
                'by_epoch': False,
                **(checkpoint or {}),
            },
            'logger': {'type': 'LoggerHook', 'interval': 1},
        },
        custom_hooks=[{'type': 'EMAHook', 'momentum': 0.1}, *hooks],
        experiment_name=f'toy{next(_names)}',
        log_level='ERROR',
        **kwargs,
    )
