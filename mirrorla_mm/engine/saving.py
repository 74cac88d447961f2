"""Saving checkpoints so that an interruption never costs the last one.

mmengine writes a checkpoint in place, so that a killed run leaves half a file under the final name,
and with ``max_keep_ckpts`` it deletes the oldest *before* the new one is written, so that a full
disk can leave none. Importing this module replaces both in mmengine's registries.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections import deque
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .checkpoint import ZIP, CheckpointError

__all__ = ['AtomicLocalBackend', 'SafeCheckpointHook', 'find_latest_checkpoint']


@register_backend('local', force=True, prefixes='')
class AtomicLocalBackend(LocalBackend):
    """Local files that appear complete or not at all."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write to ``<name>.partial`` beside the file, then rename.

        Raises:
            OSError: If it cannot be written; an earlier file of that name is left as it was.
        """
        target = Path(filepath).resolve()  # a link stays a link
        if target.exists() and not target.is_file():  # a device or a pipe
            super().put(obj, filepath)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f'{target.name}.partial')
        try:
            partial.write_bytes(obj)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            message = f'{filepath} cannot be written: {error.strerror}'
            raise OSError(error.errno, message) from error


@HOOKS.register_module(name='CheckpointHook', force=True)
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, but an old checkpoint is deleted only once the new one is there."""

    def before_train(self, runner: Runner) -> None:
        """Make room for one id more than is kept."""
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        keep, previous = self.max_keep_ckpts, self.last_ckpt
        if keep > 0:
            self.max_keep_ckpts = keep + 1
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        except OSError as error:
            last = f'the last usable one is {previous}' if previous else 'there is none yet'
            raise CheckpointError(
                f'The checkpoint of step {step} was not saved ({error.strerror}); {last}. Free '
                'space there and go on with --resume.'
            ) from error
        finally:
            self.max_keep_ckpts = keep
        if keep > 0:
            self._remove_beyond(keep)

    def _remove_beyond(self, keep: int) -> None:
        while len(self.keep_ckpt_ids) > keep:
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            if is_main_process():
                path = self.file_backend.join_path(self.out_dir, name)
                if self.file_backend.isdir(path):  # sharded checkpoints
                    self.file_backend.rmtree(path)
                elif self.file_backend.isfile(path):
                    self.file_backend.remove(path)


def find_latest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """The checkpoint to resume from, also where ``last_checkpoint`` was torn or the folder moved.

    Files that end before they should, as an interrupted copy leaves them, are passed over with a
    warning.

    Args:
        work_dir (str | os.PathLike): Folder of a run.

    Returns:
        str | None: The file that ``last_checkpoint`` names, else the newest ``epoch_*`` or
        ``iter_*`` file; None where there is none.
    """
    work_dir = Path(work_dir)
    note = work_dir / 'last_checkpoint'
    named = Path(note.read_text().strip() or '.') if note.is_file() else Path()
    saved = [p for pattern in ('epoch_*.pth', 'iter_*.pth') for p in work_dir.glob(pattern)]
    saved.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for path in (named, work_dir / named.name, *saved):
        if path.is_file():
            if _is_whole(path):
                return str(path)
            print_log(f'{path} is cut short and not resumed from.', 'current', logging.WARNING)
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file has the end that its beginning announces."""
    with path.open('rb') as file:
        start = file.read(len(ZIP))
    return bool(start) and (start != ZIP or zipfile.is_zipfile(path))
