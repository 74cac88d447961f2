"""Hooks of a super-resolution test beside its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmcv
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..registry import HOOKS
from .metrics import to_uint8


@HOOKS.register_module(force=True)
class SaveImagesHook(Hook):
    """Save the enlarged images of a test as ``FOLDER/DATASET/NAME.png``.

    Args:
        folder (str): Made where missing.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Save the predictions of a batch.

        Raises:
            OSError: If one cannot be written.
            UserError: If one holds NaN or infinity.
        """
        for sample in outputs:
            name = f'{Path(sample.gt_path).stem}.png'
            image = to_uint8(sample.pred_img, f'The prediction for {sample.gt_path}')[..., ::-1]
            mmcv.imwrite(image, str(self.folder / sample.dataset / name))
