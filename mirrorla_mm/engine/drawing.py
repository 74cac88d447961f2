"""Drawn predictions of a test run, for both tasks in the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS

__all__ = ['DrawHook']


@HOOKS.register_module(force=True)
class DrawHook(Hook):
    """Draws every image that is tested, with its labels where the data set has some.

    mmdet's hook saves to a folder within the work dir, mmseg's each fiftieth image to the folder of
    its visualizer.

    Args:
        folder (str, optional): Where to save ``<name of the image>.png``; a second image of that
            name is ``<name>-2.png``.
        show (bool): Show each in a window.
        wait_time (float): Seconds between two windows.
    """

    priority = 'LOWEST'

    def __init__(
        self, folder: str | None = None, show: bool = False, wait_time: float = 0.0
    ) -> None:
        self.folder = folder
        self.show = show
        self.wait_time = wait_time
        self._names: Counter[str] = Counter()

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Draw the images of a batch."""
        for sample in outputs or ():
            name = Path(sample.img_path).stem
            self._names[name] += 1
            number = f'-{self._names[name]}' if self._names[name] > 1 else ''
            runner.visualizer.add_datasample(
                name,
                mmcv.imfrombytes(get(sample.img_path), channel_order='rgb'),
                data_sample=sample,
                show=self.show,
                wait_time=self.wait_time,
                out_file=self.folder and str(Path(self.folder, f'{name}{number}.png')),
            )
