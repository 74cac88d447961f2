"""Saving checkpoints so that an interruption never costs the last or the best one.

mmengine writes a checkpoint in place, so that a killed run leaves half a file under the final name;
it deletes the oldest and the previous best *before* the new one is written, so that a full disk can
leave none; and of several processes it saves and scores the batch norms that each has for itself.
A config that names ``mirrorla_mm.CheckpointHook`` instead of ``CheckpointHook`` has none of that.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine._strategy import SingleDeviceStrategy
from mmengine.dist import all_reduce_params, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.logging import MessageHub
from mmengine.runner import Runner, find_latest_checkpoint

from ..registry import HOOKS
from .atomic import PARTIAL, whole_file
from .checkpoint import CheckpointError
from .work_dir import hold_work_dir, release_work_dir

__all__ = ['CheckpointHook']


class _WholeSaves:
    """A runner whose checkpoints appear complete or not at all."""

    def __init__(self, runner: Runner, hook: CheckpointHook) -> None:
        self._runner = runner
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, meta: dict, **kwargs: Any
    ) -> None:
        """Save as the runner does, local files under another name until they are complete."""
        self._hook.place = dict(meta)
        save = self._runner.save_checkpoint
        try:
            if '://' in out_dir or not is_main_process() or not _writes_one_file(self._runner):
                save(out_dir, filename, *args, meta=meta, **kwargs)
                return
            with whole_file(Path(out_dir, filename)) as file:
                save(str(file.parent), file.name, *args, meta=meta, **kwargs)
        finally:
            self._hook.place = None  # not that of what others save


def _writes_one_file(runner: Runner) -> bool:
    """Whether a checkpoint is a file of the main process; DeepSpeed and others write folders."""
    strategy = getattr(runner, 'strategy', None)
    if hasattr(strategy, '_is_full_state_dict'):
        return strategy._is_full_state_dict()
    return strategy is None or isinstance(strategy, SingleDeviceStrategy)


@HOOKS.register_module(force=True)
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's hook, safe against interruptions, full disks and what a checkpoint claims.

    A file appears complete or not at all; an old one is deleted once the new one is there, and only
    if its name is one that this hook gives, in the folder it saves to. Before a checkpoint is saved
    or validated, the processes of a distributed run agree on the buffers (statistics of batch
    norms), so that the score is that of the file. Training holds the work dir: see
    :func:`.work_dir.hold_work_dir`.

    Args:
        **kwargs: Options of :class:`mmengine.hooks.CheckpointHook`.
    """

    place: dict | None = None
    _agreed = False
    _resumed_from: str | None = None

    def before_train(self, runner: Runner) -> None:
        """Take over what a resumed run left, as far as it is its own."""
        if is_main_process():
            hold_work_dir(runner.work_dir)
        self._forget_foreign_files(runner.message_hub)
        super().before_train(runner)
        if is_main_process() and '://' not in self.out_dir:
            hold_work_dir(self.out_dir)  # work dirs of one name share it
        for key, path in self._best().items():
            if path:  # The folder may have moved.
                self._set_best(key, self._inside(path))
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)
        if runner.iter > 0:
            source = runner._load_from or find_latest_checkpoint(runner.work_dir)
            self._resumed_from = source
            if source and self._inside(source) == source:
                self.last_ckpt = source
        if is_main_process() and os.path.isdir(self.out_dir):
            for partial in Path(self.out_dir).glob(f'*{PARTIAL}'):
                if self._is_own(partial.name.rsplit('.', 2)[0]):
                    partial.unlink(missing_ok=True)

    def after_run(self, runner: Runner) -> None:
        """Let other trainings use the work dir."""
        if is_main_process():
            for folder in (runner.work_dir, self.out_dir or runner.work_dir):
                release_work_dir(folder)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember that the processes' buffers will differ."""
        self._agreed = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the place in the run: ``FlexibleRunner`` counts too far after validation."""
        checkpoint['meta'].update(self.place or {})

    def before_val_epoch(self, runner: Runner) -> None:
        """Score what is saved."""
        self._agree_on_buffers(runner)

    def _agree_on_buffers(self, runner: Runner) -> None:
        if self._agreed:
            return
        averages = [hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')]
        for model in (runner.model, *averages):
            buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
            all_reduce_params(buffers, op='mean')
        self._agreed = True

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._agree_on_buffers(runner)
        keep, previous = self.max_keep_ckpts, self.last_ckpt or self._resumed_from
        if keep > 0:
            self.max_keep_ckpts = keep + 1
        try:
            with _said(f'The checkpoint of step {step}', previous):
                super()._save_checkpoint_with_step(self._whole(runner), step, meta)
        finally:
            self.max_keep_ckpts = keep
        while keep > 0 and len(self.keep_ckpt_ids) > keep:
            self._remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        before = self._best()
        for key in before:
            self._set_best(key, None)  # or mmengine deletes it first
        try:
            with _said('The best checkpoint', self.last_ckpt or self._resumed_from):
                super()._save_best_checkpoint(self._whole(runner), metrics)
        finally:
            after = self._best()
            for key, path in before.items():
                if after[key] is None:
                    self._set_best(key, path)
        for key, path in before.items():
            if path and after[key] not in (None, path):
                self._remove(path)

    def _whole(self, runner: Runner | _WholeSaves) -> _WholeSaves:
        return runner if isinstance(runner, _WholeSaves) else _WholeSaves(runner, self)

    def _best(self) -> dict[str | None, str | None]:
        """The best checkpoint of each metric; of a single one under the key None."""
        if not self.save_best:
            return {}
        if len(self.key_indicators) == 1:
            return {None: self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, key: str | None, path: str | None) -> None:
        if key is None:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path

    def _is_own(self, name: str) -> bool:
        """Whether this hook gives files such a name."""
        step = r'\d+'.join(map(re.escape, re.split(r'\{[^}]*\}', self.filename_tmpl)))
        return re.fullmatch(rf'(best_[^/]+_)?{step}', name) is not None

    def _inside(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, os.path.basename(path))

    def _remove(self, path: str) -> None:
        """Delete a checkpoint of this hook in its folder, wherever the path leads."""
        path = self._inside(path)
        if not is_main_process() or not self._is_own(os.path.basename(path)):
            return
        if self.file_backend.isdir(path):  # sharded checkpoints
            self.file_backend.rmtree(path)
        elif self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _forget_foreign_files(self, hub: MessageHub) -> None:
        """Drop what a checkpoint names as the run's files, where the run gives no such names."""
        info = hub.runtime_info
        for key in [key for key in info if str(key).startswith('best_ckpt')]:
            path = info[key]
            if not isinstance(path, str) or not self._is_own(os.path.basename(path)):
                del info[key]
        ids = info.get('keep_ckpt_ids', [])
        if not isinstance(ids, list) or not all(type(step) is int for step in ids):
            info.pop('keep_ckpt_ids')


@contextmanager
def _said(what: str, last: str | None) -> Iterator[None]:
    """Name the last usable checkpoint where one cannot be saved."""
    try:
        yield
    except OSError as error:
        usable = f'the last usable one is {last}' if last else 'there is none yet'
        raise CheckpointError(
            f'{what} was not saved ({error.strerror or error}); {usable}. Free space there and go '
            'on with --resume.'
        ) from error
