"""Random numbers that follow from the seed and the place in the run: a resumed run is the run.

mmengine restores weights, optimizer, schedules and averages, but no random state: after a resume,
drop-path and augmentation draw other numbers, and without a seed in the config the data come in
another order. Storing states would not do: workers run ahead of the training, and die with it. Here
nothing needs to be stored, because each iteration and each sample is seeded by its own number.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.runner import Runner
from torch.utils.data import Dataset, Sampler

from ..registry import DATA_SAMPLERS, HOOKS
from .checkpoint import load_checkpoint_file
from .checkpoint_fit import check_training_state

__all__ = ['NumberedSampler', 'SeedIterationHook', 'make_reproducible']

SAMPLER = 'mirrorla_mm.NumberedSampler'
HOOK = 'mirrorla_mm.SeedIterationHook'


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and torch's CPU generator by a list of non-negative numbers."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.random.default_generator.manual_seed(state)


class Draw(int):
    """An index into a data set that knows its place in the run.

    Attributes:
        place (tuple[int, ...]): Epoch and number within it.
    """

    place: tuple[int, ...]

    def __new__(cls, index: int, place: tuple[int, ...] = ()) -> Draw:
        draw = super().__new__(cls, index)
        draw.place = place
        return draw


class SeededFetch:
    """The batched access that torch's data loader prefers, seeding before each sample."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = get_rank()

    def __call__(self, indices: list[int]) -> list:
        return [self.fetch(index) for index in indices]

    def fetch(self, index: int) -> Any:
        """One sample, augmented by random numbers of its own."""
        if isinstance(index, Draw):
            seed_everything(self.seed, self.rank, *index.place)
        return self.dataset[index]


@DATA_SAMPLERS.register_module(force=True)
class NumberedSampler(Sampler):
    """Any sampler, whose draws are numbered and whose samples are seeded by their number.

    Args:
        dataset (Dataset): What is sampled; its augmentations are seeded from now on.
        sampler (dict): The sampler to number.
        seed (int, optional): Of the run.
    """

    def __init__(self, dataset: Dataset, sampler: dict, seed: int | None = None) -> None:
        self.dataset = dataset
        self.sampler = ROOT_DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=seed)
        )
        self.epoch = 0
        dataset.__getitems__ = SeededFetch(dataset, seed or 0)

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        for number, index in enumerate(self.sampler):
            yield Draw(index, (epoch, number))

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler, where it wants to know."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)


@HOOKS.register_module(force=True)
class SeedIterationHook(Hook):
    """Seeds each iteration's forward pass by its number, on every rank differently."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed, on the accelerator too."""
        seed_everything(runner.seed, get_rank(), runner.iter)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(torch.initial_seed())


def make_reproducible(cfg: Config) -> None:
    """Let a config's training draw the same random numbers whether it was interrupted or not.

    A resumed run takes the seed of its checkpoint, so that its data come in the order begun. With
    the iteration-based loop, mmengine itself goes through the data that were used before.

    Args:
        cfg (Config): Of a training run; ``resume`` and ``load_from`` are set if it resumes.
    """
    loader = cfg.train_dataloader
    if isinstance(loader.get('sampler'), dict) and loader.sampler.get('type') != SAMPLER:
        loader.sampler = dict(type=SAMPLER, sampler=loader.sampler)
    hooks = cfg.get('custom_hooks') or []
    if not any(hook.get('type') == HOOK for hook in hooks if isinstance(hook, dict)):
        cfg.custom_hooks = [*hooks, dict(type=HOOK)]
    if cfg.get('resume') and cfg.get('load_from'):
        checkpoint = load_checkpoint_file(cfg.load_from, 'cpu')
        check_training_state(checkpoint, cfg.load_from)
        seed = checkpoint['meta'].get('seed')
        if seed is not None:
            cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}
