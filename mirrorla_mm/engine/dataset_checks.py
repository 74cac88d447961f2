"""Data sets that say what is wrong with their files, when they are built and when they are read.

OpenMMLab's data sets raise whatever their decoder, JSON parser or an empty list raises, which
seldom names the file, and leave out annotations in silence.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from .annotations import annotation_problem
from .data import DataError
from .images import IMAGES, decoding_problem

__all__ = ['check_datasets']

LOOKED_AT = 20  # Files that are looked for when a data set is built, of those that it lists.


def check_datasets() -> None:
    """Let OpenMMLab's data sets check what they load, in this process and its workers.

    Affects mmengine's ``BaseDataset`` and mmdet's ``BaseDetDataset`` and ``CocoDataset``: what they
    refuse is a :class:`~mirrorla_mm.engine.data.DataError`, and COCO data sets remember as
    ``dropped_boxes`` the annotations that they leave out. Calling it again changes nothing.
    """
    _wrap(BaseDataset, 'prepare_data', _naming)
    _wrap(BaseDataset, 'full_init', _checking)
    try:
        from mmdet.datasets import BaseDetDataset, CocoDataset
    except ImportError:
        return
    from .coco import CheckedCOCO

    _wrap(BaseDetDataset, 'full_init', _checking)
    _wrap(CocoDataset, 'parse_data_info', _remembering)
    CocoDataset.COCOAPI = CheckedCOCO


def _wrap(cls: type, name: str, wrapper: Callable[[Callable], Callable]) -> None:
    method = cls.__dict__[name]
    if not hasattr(method, '__wrapped__'):
        setattr(cls, name, functools.wraps(method)(wrapper(method)))


def _naming(prepare_data: Callable) -> Callable:
    """Name the image or label that cannot be read."""

    def prepare(self: BaseDataset, idx: int) -> Any:
        try:
            return prepare_data(self, idx)
        except DataError:
            raise
        except Exception as error:
            info = self.get_data_info(idx)
            for path in (info.get('img_path'), info.get('seg_map_path')):
                if isinstance(path, str) and '://' not in path:
                    problem = decoding_problem(path)
                    if problem:
                        raise DataError(f'{path} {problem}.') from error
            raise

    return prepare


def _checking(full_init: Callable) -> Callable:
    """Refuse a data set of nothing, and one whose files are not there."""

    def init(self: BaseDataset) -> None:
        if self._fully_initialized:
            return
        try:
            full_init(self)
        except ValueError as error:
            if 'need at least one array' not in str(error):
                raise
            raise DataError(_nothing_in(self)) from error
        if not len(self):
            raise DataError(_nothing_in(self))
        for key in ('img_path',) if self.test_mode else ('img_path', 'seg_map_path'):
            _look_for(self, key)
        _warn_of_other_names(self)

    return init


def _nothing_in(dataset: BaseDataset) -> str:
    """Why a data set has no samples."""
    kind = type(dataset).__name__
    if not dataset.ann_file:
        folder, suffix = _folder(dataset), getattr(dataset, 'img_suffix', '')
        found = next(
            (path.name for path in sorted(Path(folder).rglob('*')) if path.is_file()), None
        )
        held = f'it holds such as {found}' if found else 'it is empty'
        return f'{kind} finds no image in {folder}: no name there ends in {suffix!r}, {held}.'
    options = ', '.join(f'{k}={v}' for k, v in (dataset.filter_cfg or {}).items())
    left = f' that filter_cfg ({options}) leaves' if options else ''
    return (
        f'{kind} finds no image in {dataset.ann_file}{left}: the file lists none, or none has an '
        f'object of the classes {dataset.metainfo.get("classes")}.'
    )


def _folder(dataset: BaseDataset) -> str:
    prefix = dataset.data_prefix
    return prefix.get('img_path') or prefix.get('img') or dataset.data_root or '.'


def _look_for(dataset: BaseDataset, key: str) -> None:
    """Refuse a data set of which no file is there; single ones are found when they are read."""
    step = max(len(dataset) // LOOKED_AT, 1)
    paths = [dataset.get_data_info(i).get(key) for i in range(0, len(dataset), step)]
    paths = [path for path in paths if isinstance(path, str) and '://' not in path]
    if not paths or dataset.__dict__.get('backend_args') or any(map(os.path.exists, paths)):
        return
    folder = Path(paths[0]).parent
    inside = [n for n in sorted(os.listdir(folder)) if n[0] != '.'] if folder.is_dir() else []
    held = f'that folder holds such as {inside[0]}' if inside else 'there is nothing in that folder'
    source = dataset.ann_file or f'{type(dataset).__name__}'
    raise DataError(
        f'{source} names files that are not there, such as {paths[0]} ({len(paths)} of '
        f'{len(dataset)} were looked for); {held}.'
    )


def _warn_of_other_names(dataset: BaseDataset) -> None:
    """Name images of a folder that are left out, as ``a.JPG`` is where names end in ``.jpg``."""
    suffix = getattr(dataset, 'img_suffix', None)
    if not isinstance(suffix, str) or dataset.ann_file or dataset.__dict__.get('backend_args'):
        return
    folder = Path(_folder(dataset))
    paths = [path.relative_to(folder) for path in sorted(folder.rglob('[!.]*'))]
    others = [path for path in paths if _is_left_out(dataset, folder, str(path), suffix)]
    if others:
        print_log(
            f'{type(dataset).__name__} leaves out {len(others)} images of {folder}, such as '
            f'{others[0]}: only names that end in {suffix!r} (img_suffix) are taken.',
            logger='current',
            level=logging.WARNING,
        )


def _is_left_out(dataset: BaseDataset, folder: Path, name: str, suffix: str) -> bool:
    """Whether a file differs from an image of the data set by its suffix alone.

    That is by case, or as ``c.png`` with a label does where ``c.jpg`` is missing. Labels, previews
    and other files beside the images are none.
    """
    if name.endswith(suffix):
        return False
    if name.lower().endswith(suffix.lower()):
        return True
    stem, kind = os.path.splitext(name)
    end = suffix.rpartition('.')[0]  # '_leftImg8bit' of '_leftImg8bit.png'
    labels = dataset.data_prefix.get('seg_map_path')
    if kind.lower() not in IMAGES or not stem.endswith(end) or labels is None:
        return False
    stem = stem.removesuffix(end)
    label = Path(labels, f'{stem}{getattr(dataset, "seg_map_suffix", None)}')
    return label != folder / name and label.exists() and not (folder / f'{stem}{suffix}').exists()


def _remembering(parse: Callable) -> Callable:
    """Leave out annotations that cannot be trained on, and remember them."""

    def remember(self: Any, raw_data_info: dict) -> Any:
        image, sound = raw_data_info['raw_img_info'], []
        dropped = self.__dict__.setdefault('dropped_boxes', [])
        for annotation in raw_data_info['raw_ann_info']:
            problem = annotation_problem(annotation, image, self.coco.cats)
            if problem:
                dropped.append((image['file_name'], problem))
            else:
                sound.append(annotation)
        return parse(self, {**raw_data_info, 'raw_ann_info': sound})

    return remember
