"""Resuming: from the right checkpoint, at the right place, with nothing lost."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop
from mmengine.runner import Runner
from torch import nn

from ..registry import HOOKS, LOOPS
from .atomic import PARTIAL, whole_file
from .checkpoint import CheckpointError, UnsafeCheckpointError, load_checkpoint_file
from .distributed import decided_by_first, join_processes
from .errors import UserError

__all__ = [
    'EpochBasedTrainLoop',
    'LostValidationHook',
    'checkpoint_for_all',
    'find_latest_checkpoint',
]


def find_latest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """The checkpoint to resume from, also where ``last_checkpoint`` was torn or the folder moved.

    What cannot be read whole, as an interrupted copy or a crash of the machine leaves it, is passed
    over with a warning.

    Args:
        work_dir (str | os.PathLike): Folder of a run.

    Returns:
        str | None: The file that ``last_checkpoint`` names, else the ``epoch_*`` or ``iter_*`` file
        with the highest number; None where there is none.

    Raises:
        UnsafeCheckpointError: If that file asks for what could run code.
    """
    tried = set()
    for path in _candidates(Path(work_dir)):
        if path in tried:
            continue
        tried.add(path)
        try:
            load_checkpoint_file(path, 'cpu')
            return str(path)
        except UnsafeCheckpointError:
            raise
        except (CheckpointError, OSError) as error:
            _warn(f'Not resumed from: {error}')
    return None


def checkpoint_for_all(cfg: Config) -> str | None:
    """The checkpoint that all processes of a launch resume from: the first one's latest.

    Args:
        cfg (Config): With ``work_dir``, and ``launcher`` where there are several.

    Raises:
        UnsafeCheckpointError: See :func:`find_latest_checkpoint`.
    """
    join_processes(cfg)
    return decided_by_first(lambda: find_latest_checkpoint(cfg.work_dir))


def _candidates(work_dir: Path) -> Iterator[Path]:
    note = work_dir / 'last_checkpoint'
    if note.is_file():
        try:
            named = Path(note.read_text('utf-8').strip())
            # In the folder first: a copy of it still names the files of the original.
            yield from (path for path in (work_dir / named.name, named) if path.is_file())
        except (OSError, ValueError):
            _warn(f'{note} does not name a checkpoint; those beside it are looked at.')
    numbered = {
        path: int(match[1])
        for path in work_dir.glob('*.pth')
        if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name))
    }
    yield from sorted(numbered, key=numbered.__getitem__, reverse=True)


def _warn(message: str) -> None:
    print_log(message, 'current', logging.WARNING)


@LOOPS.register_module(force=True)
class EpochBasedTrainLoop(MMEngineEpochBasedTrainLoop):
    """mmengine's loop, which also goes on in the middle of an epoch.

    A checkpoint in the middle of one is saved by a hook with ``by_epoch=False``. mmengine starts
    that epoch again, and the schedules run ahead of the data from then on. Here the batches that
    the run was trained on are passed over. That they come in the same order needs a seeded sampler:
    see :mod:`.reproducible`.

    Args:
        *args: Those of :class:`mmengine.runner.EpochBasedTrainLoop`.
        **kwargs: The same.
    """

    _done = 0

    def run(self) -> nn.Module:
        """Train.

        Raises:
            UserError: If the run goes on within an epoch that now has another length.
        """
        length = len(self.dataloader)
        info = self.runner.message_hub.runtime_info  # still that of the checkpoint
        epochs, iters = info.get('max_epochs'), info.get('max_iters')
        if self._iter and type(epochs) is type(iters) is int and epochs > 0:
            before = iters // epochs
            done = self._iter - self._began(info, before)
            if 0 < done < before != length:
                raise UserError(
                    f'The checkpoint was saved in the middle of an epoch of {before} iterations, '
                    f'which now has {length}: resume with the batch size, data and number of '
                    'processes that it was trained with, or from a checkpoint at the end of an '
                    'epoch.'
                )
            if 0 < done <= before:  # else the checkpoint is wrong or of an older loop
                self._done = length if done == before else done
        return super().run()

    def _began(self, info: dict, length: int) -> int:
        """The iteration at which the epoch of a checkpoint began."""
        noted = info.get('epoch_began')
        if not isinstance(noted, list) or [type(value) for value in noted] != [int, int]:
            return self._epoch * length  # mmengine's own loop notes nothing
        epoch, iteration = noted
        return iteration if epoch == self._epoch else self._iter

    def run_epoch(self) -> None:
        """Iterate one epoch, or the rest of it."""
        if self._done:
            _warn(f'The first {self._done} iterations of this epoch were trained already.')
        # Earlier epochs may have had another length.
        began = [self._epoch, self._iter - self._done]
        self.runner.message_hub.update_info('epoch_began', began)
        super().run_epoch()
        self._done = 0

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Iterate one batch, unless it was trained on before."""
        if idx >= self._done:
            super().run_iter(idx, data_batch)


@HOOKS.register_module(force=True)
class LostValidationHook(Hook):
    """Validates a resumed checkpoint whose validation was cut off, before training goes on.

    mmengine saves, then validates; a run that is killed in between never has that score, nor a best
    checkpoint of it. The last validation that was finished is noted in the work dir.
    """

    priority = 'LOWEST'  # after the checkpoint hook
    training = False

    def before_train(self, runner: Runner) -> None:
        """Validate if that is due at the place of the checkpoint and not noted."""
        self.training = True
        note = self._note(runner)
        if is_main_process():
            for partial in note.parent.glob(f'{note.name}.*{PARTIAL}'):
                partial.unlink(missing_ok=True)
        if runner.iter == 0:
            runner.message_hub.update_info('run', uuid.uuid4().hex)
            if is_main_process():
                note.unlink(missing_ok=True)
            return
        if not _validation_due(runner.train_loop):
            return
        # Not all processes need to see the same disk.
        noted = [note.read_bytes() == self._entry(runner) if note.is_file() else False]
        broadcast_object_list(noted)
        if not noted[0]:
            runner.logger.info(
                f'Nothing says that iteration {runner.iter} was validated: doing it now.'
            )
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Note that this validation is done."""
        if self.training and is_main_process():
            with whole_file(self._note(runner)) as file:
                file.write_bytes(self._entry(runner))

    @staticmethod
    def _entry(runner: Runner) -> bytes:
        """The place in the run, and which run, as its checkpoints say."""
        run = runner.message_hub.runtime_info.get('run')
        return f'{runner.iter} of {run}\n'.encode(errors='replace')

    def _note(self, runner: Runner) -> Path:
        return Path(runner.work_dir, 'last_validation')


def _validation_due(loop: Any) -> bool:
    """Whether a train loop would validate at the place where it stands."""
    if loop.runner.val_loop is None or not hasattr(loop, 'val_interval'):
        return False
    loop._decide_current_val_interval()
    place, end = loop.iter, loop.max_iters
    if isinstance(loop, MMEngineEpochBasedTrainLoop):
        ours = isinstance(loop, EpochBasedTrainLoop)
        if loop._done if ours else loop.iter != loop.epoch * len(loop.dataloader):
            return False
        place, end = loop.epoch, loop.max_epochs
    return place >= loop.val_begin and (place % loop.val_interval == 0 or place == end)
