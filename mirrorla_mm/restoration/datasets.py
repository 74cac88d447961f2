"""Folders of images to learn super-resolution from, and to be tested on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset

from ..engine.data import DataError
from ..engine.images import IMAGES, open_image
from ..registry import DATASETS


@DATASETS.register_module(force=True)
class SuperResolutionDataset(BaseDataset):
    """Folders of high-resolution images and, where they are given, of low-resolution images.

    Without the latter the images are shrunk when they are loaded. A low-resolution image has the
    name of its partner (``GTmod12/baby.png``, ``LRbicx4/baby.png``) or the scale beside it
    (``HR/baby.png``, ``LR_bicubic/X4/babyx4.png``); its suffix may be another one.

    Args:
        scale (int): Factor between the two.
        data_root (str): Where the folders are.
        gt_dir (str): Folder of high-resolution images. Defaults to ``'HR'``.
        lr_dir (str, optional): Folder of low-resolution images; ``{scale}`` in it stands for the
            factor. Defaults to none.
        sets (str | Sequence[str], optional): Benchmarks in folders of their own below
            ``data_root``, each with these folders. Defaults to a single one, in ``data_root``.
        **kwargs: Options of :class:`mmengine.dataset.BaseDataset`; ``pipeline``, ``indices`` and
            the like. ``filter_cfg=dict(min_size=192)`` leaves out images with fewer pixels on a
            side at high resolution.

    Raises:
        DataError: If a folder is missing or has no images, or one of them has no partner.

    Note:
        A sample has ``gt_path``, ``img_path`` (only with low-resolution images), ``scale`` and
        ``dataset``, the name of its benchmark.
    """

    METAINFO = dict(task='super-resolution')

    def __init__(
        self,
        scale: int,
        data_root: str,
        gt_dir: str = 'HR',
        lr_dir: str | None = None,
        sets: str | Sequence[str] | None = None,
        **kwargs,
    ) -> None:
        self.scale = scale
        self.gt_dir = gt_dir
        self.lr_dir = None if lr_dir is None else lr_dir.format(scale=scale)
        self.sets = [sets] if isinstance(sets, str) else sets
        super().__init__(data_root=data_root, data_prefix={}, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry for each high-resolution image, benchmark by benchmark, sorted by name."""
        root = Path(self.data_root)
        folders = [root] if self.sets is None else [root / name for name in self.sets]
        return [entry for folder in folders for entry in self._entries(folder)]

    def filter_data(self) -> list[dict]:
        """Leave out images that are smaller than ``filter_cfg`` asks for."""
        smallest = (self.filter_cfg or {}).get('min_size')
        if not smallest:
            return self.data_list
        return [x for x in self.data_list if not _is_smaller(x['gt_path'], smallest)]

    def _entries(self, root: Path) -> list[dict]:
        # The name that the user gave it, whatever a link leads to.
        shared = dict(scale=self.scale, dataset=Path(os.path.abspath(root)).name)
        truths = images_of(root / self.gt_dir)
        if self.lr_dir is None:
            return [dict(gt_path=str(path), **shared) for path in truths.values()]
        folder = root / self.lr_dir
        if not folder.is_dir():
            raise DataError(
                f'The folder {folder} does not exist. With lr_dir=None of the data set '
                'small images are made from the large ones as they are loaded.'
            )
        images = images_of(folder)
        entries = []
        for name, path in truths.items():
            partner = images.get(f'{name}x{self.scale}') or images.get(name)
            if partner is None:
                raise DataError(
                    f'{path} has no low-resolution partner, neither {name}x{self.scale} nor '
                    f'{name}, in {folder}.'
                )
            entries.append(dict(gt_path=str(path), img_path=str(partner), **shared))
        return entries


def _is_smaller(path: str, side: int) -> bool:
    try:
        with open_image(path) as image:
            return min(image.size) < side
    except Exception:
        return False  # Whoever loads it says what is wrong, or skips it.


def images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without suffix, sorted.

    Raises:
        DataError: If there is no such folder, no image in it, or two of one name.
    """
    if not folder.is_dir():
        raise DataError(f'The folder {folder} does not exist.')
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGES and not os.path.isdir(path):
            if path.stem in images:
                raise DataError(
                    f'{images[path.stem]} and {path} have one name but for the suffix: rename one.'
                )
            images[path.stem] = path
    if not images:
        raise DataError(f'The folder {folder} holds no {", ".join(IMAGES)}.')
    return images
