"""Images and labels that would train a model on something false.

OpenCV before 5 fills the rest of a cut-off JPEG with grey, a label map of another size or with a
class that does not exist fails late or not at all, and a mask without an end takes a worker down.
Here each is found where it is read, refused or skipped by a policy that the user names, and
reported.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.runner import Runner
from PIL import UnidentifiedImageError

from ..registry import HOOKS, TRANSFORMS
from .annotations import segmentation_problem
from .data import DataError
from .dataset_checks import check_datasets
from .images import cut_short, decoding_problem, open_image, opening_problem, orientation

__all__ = ['BadDataHook', 'CheckedLoading', 'check_loading']

POLICIES = ('refuse', 'skip')
LOADERS = ('LoadImageFromFile', 'LoadAnnotations', 'LoadLatent', 'LoadSquareImage')
PAIR_LOADER = 'mirrorla_mm.LoadImagePair'
TRANSFORM = 'mirrorla_mm.CheckedLoading'
HOOK = 'mirrorla_mm.BadDataHook'
PIPELINES = ('pipeline', 'switch_pipeline')  # of a data set, and of mmdet's PipelineSwitchHook
DEEP_MODES = ('I', 'I;16', 'I;16B', 'I;16L', 'F')  # Pillow's, of more than 8 bits a pixel.
CLASSIFIER = re.compile(r'\b(bbox_head|decode_head)(\.\d+)?$')  # Cascades have several.
SHOWN = 5


@TRANSFORMS.register_module(force=True)
class CheckedLoading(BaseTransform):
    """A loading transform that refuses or skips what cannot be trusted.

    Found are: files that are missing, empty, unreadable, cut short or of more pixels than
    ``PIL.Image.MAX_IMAGE_PIXELS``; images whose size is not the one that their annotations were
    made for, or of which the EXIF orientation leaves open for which way up they were made; label
    maps of another size than the image, or with classes that the model does not have, in 8 or 16
    bits; polygons and masks that do not fit the image; and whatever else the loader raises. Grey,
    16-bit and RGBA images are sound: the loader makes 8-bit BGR of them.

    Args:
        transform (dict): The loading transform.
        policy (str): ``'refuse'`` raises; ``'skip'`` lets the data set draw another sample, in
            training, and notes it in ``log``.
        num_classes (int, optional): Of a segmentor; no check of the classes without it.
        ignore_index (int): Label of pixels without a class. Defaults to 255.
        log (str, optional): File to append a line of JSON to for every sample skipped.

    Raises:
        ValueError: If there is no such policy.
    """

    def __init__(
        self,
        transform: dict,
        policy: str = 'refuse',
        num_classes: int | None = None,
        ignore_index: int = 255,
        log: str | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"Unknown policy '{policy}' for bad data; choose refuse or skip.")
        self.load = ROOT_TRANSFORMS.build(transform)
        self.policy = policy
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.log = log

    def transform(self, results: dict) -> dict | None:
        """Load, or None for a sample to skip.

        Raises:
            DataError: If something is wrong and the policy is to refuse.
        """
        before = set(results)
        path = self._path(results, before)
        loaded = None
        try:
            problem = self._problem_before(results, path, before)
            if problem is None:
                loaded = self.load(results)
                problem = self._problem_after(loaded, path, before)
        except DataError as error:  # of a loader that knows its format
            problem = str(error).removeprefix(f'{path} ').rstrip('.')
        except Exception as error:
            local = None if '://' in path else cut_short(path) or decoding_problem(path)
            problem = local or f'cannot be loaded ({_first_line(error)})'
        if problem is None:
            return loaded
        if self.policy == 'refuse':
            raise DataError(
                f'{path} {problem}. Mend it, or train with --bad-data skip to leave it out.'
            )
        self._note(path, problem)
        return None

    def _problem_before(self, results: dict, path: str, before: set[str]) -> str | None:
        """Why a file is dangerous to decode; None if it is not."""
        if 'img' in before and getattr(self.load, 'with_mask', False):
            for instance in results.get('instances', []):
                problem = segmentation_problem(instance.get('mask'), *results['ori_shape'][:2])
                if problem:
                    return problem
        remote = getattr(self.load, 'backend_args', None) and not os.path.exists(path)
        if '://' in path or remote or ('img' in before and not results.get('seg_map_path')):
            return None
        return opening_problem(path)

    def _problem_after(self, results: dict, path: str, before: set[str]) -> str | None:
        """The fault of what was loaded; None if it is sound."""
        if 'img' not in before:
            return cut_short(path) or _other_size(results) or self._unknown_side_up(results, path)
        if 'gt_seg_map' in results and 'gt_seg_map' not in before:
            return cut_short(path) or self._wrong_labels(results, path)
        return None

    def _unknown_side_up(self, results: dict, path: str) -> str | None:
        """Whether the image is turned in a way that its size does not show.

        That matters where annotations have a place in the image, not for a label of the whole.
        """
        placed = 'instances' in results or 'seg_map_path' in results
        if not placed or 'ignore_orientation' in getattr(self.load, 'color_type', ''):
            return None
        turn = orientation(path)
        height, width = results['img'].shape[:2]
        if turn == 1 or (turn > 4 and height != width):
            return None
        return (
            f'has the EXIF orientation {turn}, and its annotations may be of the image as it is '
            'stored: save it upright, without EXIF'
        )

    def _wrong_labels(self, results: dict, path: str) -> str | None:
        labels, size = _stored_labels(path, results['gt_seg_map']), results['ori_shape'][:2]
        if labels.ndim != 2:
            return f'has {labels.shape[-1]} channels where a class index is expected'
        if labels.shape != tuple(size):
            return f'is {_size(labels.shape)}, but its image is {_size(size)}'
        if self.num_classes is None:
            return None
        known = (labels < self.num_classes) & (labels >= 0) | (labels == self.ignore_index)
        if known.all():
            return None
        wrong = sorted(np.unique(labels[~known]).tolist())
        return (
            f'has the classes {wrong[:SHOWN]}, but the model has 0 to {self.num_classes - 1} (and '
            f'{self.ignore_index} for none)'
        )

    def _path(self, results: dict, before: set[str]) -> str:
        key = 'seg_map_path' if 'img' in before and results.get('seg_map_path') else 'img_path'
        return str(results.get(key))

    def _note(self, path: str, problem: str) -> None:
        if self.log is None:
            return
        line = json.dumps({'path': path, 'problem': problem})
        # One short write in append mode: lines of several workers do not mix.
        with open(self.log, 'a', encoding='utf-8') as file:
            file.write(line + '\n')


def _stored_labels(path: str, loaded: np.ndarray) -> np.ndarray:
    """The label map as it was loaded, or as it is stored where loading has cut it to 8 bits."""
    if not Path(path).is_file():
        return loaded
    try:
        with open_image(path) as image:
            if image.mode not in DEEP_MODES:
                return loaded
            stored = np.asarray(image)
    except UnidentifiedImageError:
        return loaded  # of a format that the loader knows
    return stored if stored.max(initial=0) > 255 else loaded


def _other_size(results: dict) -> str | None:
    """Whether the annotations were made for an image of another size."""
    size = tuple(results['img'].shape[:2])
    stated = (results.get('height', size[0]), results.get('width', size[1]))
    if size == stated:
        return None
    return f'is {_size(size)}, but its annotations are for {_size(stated)}'


def _size(shape: tuple[int, ...]) -> str:
    return f'{shape[1]} x {shape[0]} pixels'


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@HOOKS.register_module(force=True)
class BadDataHook(Hook):
    """Check the number of classes; report which annotations and samples were left out.

    Args:
        log (str): The file that :class:`CheckedLoading` writes. What an earlier run wrote stays in
            it and is not reported again.
    """

    def __init__(self, log: str) -> None:
        self.log = Path(log)
        self._start = 0

    def before_train(self, runner: Runner) -> None:
        """Check the classes, report annotations left out, note where this run's entries begin.

        Raises:
            DataError: If the model has fewer classes than the data set.
        """
        if is_main_process() and self.log.is_file():
            content = self.log.read_bytes()
            if content and not content.endswith(b'\n'):
                # A line that a kill has torn must not swallow the next one.
                with open(self.log, 'ab') as file:
                    file.write(b'\n')
            self._start = self.log.stat().st_size
        barrier()
        _check_number_of_classes(runner)
        for dataset in _datasets(runner.train_dataloader.dataset):
            dropped = getattr(dataset, 'dropped_boxes', None)
            if dropped:
                counts = Counter(problem for _, problem in dropped)
                reasons = ', '.join(f'{count} {reason}' for reason, count in counts.items())
                runner.logger.warning(
                    f'{dataset.ann_file}: annotations left out: {reasons}; in '
                    f'{_shown([name for name, _ in dropped])}.'
                )

    def after_train(self, runner: Runner) -> None:
        """Report the samples skipped."""
        problems = self._entries()
        if problems:
            runner.logger.warning(
                f'{len(problems)} samples were skipped as bad data: '
                f'{_shown([f"{path} {problem}" for path, problem in problems.items()])}. All of '
                f'them are listed in {self.log}.'
            )

    def _entries(self) -> dict[str, str]:
        """Problems by path, of this run; lines that are torn are passed over."""
        problems: dict[str, str] = {}
        if not self.log.is_file():
            return problems
        for line in self.log.read_bytes()[self._start :].decode(errors='replace').splitlines():
            try:
                entry = json.loads(line)
                problems[entry['path']] = entry['problem']
            except (ValueError, TypeError, KeyError):
                continue
        return problems


def _check_number_of_classes(runner: Runner) -> None:
    """Compare the heads that classify with the data set."""
    meta = getattr(runner.train_dataloader.dataset, 'metainfo', {})
    classes = meta.get('classes') or ()
    for name, module in runner.model.named_modules():
        count = getattr(module, 'num_classes', None)
        if not CLASSIFIER.search(name) or count is None or not classes:
            continue
        name = name.removeprefix('module.')
        message = (
            f'{name} has {count} classes, but the data set has {len(classes)}: '
            f'{", ".join(classes[:SHOWN])}{", ..." * (len(classes) > SHOWN)}. Set '
            f'model.{name}.num_classes={len(classes)}.'
        )
        if count < len(classes):
            raise DataError(message)
        if count > len(classes):
            runner.logger.warning(message)


def _shown(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return '; '.join(names[:SHOWN]) + more


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield a data set and those that it wraps."""
    yield dataset
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]:
        if inner is not None:
            yield from _datasets(inner)


def check_loading(cfg: Config, policy: str = 'refuse') -> None:
    """Check whatever a config's pipelines load, and report it.

    Evaluation always refuses: a score over fewer images than it says would be false.

    Args:
        cfg (Config): Of a training run, with ``work_dir``.
        policy (str): For training, ``'refuse'`` or ``'skip'``.
    """
    head = cfg.get('model', {}).get('decode_head') or {}
    head = head[-1] if isinstance(head, list) else head
    options = dict(num_classes=head.get('num_classes'), ignore_index=head.get('ignore_index', 255))
    log = str(Path(cfg.work_dir) / 'bad_data.jsonl')
    hooks = cfg.get('custom_hooks') or []
    for node in (cfg.get('train_dataloader'), hooks):
        _wrap(node, policy=policy, log=log, **options)
    # Not that of testing: inferencers look for the bare loader in its pipeline.
    _wrap(cfg.get('val_dataloader'), **options)
    others = [hook for hook in hooks if not isinstance(hook, dict) or hook.get('type') != HOOK]
    cfg.custom_hooks = [*others, dict(type=HOOK, log=log)]
    check_datasets()


def _wrap(node: Any, **options: Any) -> None:
    """Wrap the loaders of every pipeline below a node of a config."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _wrap(item, **options)
    if not isinstance(node, dict):
        return
    for key, child in node.items():
        if key in PIPELINES and isinstance(child, list):
            node[key] = [_wrapped(transform, options) for transform in child]
        else:
            _wrap(child, **options)


def _wrapped(transform: dict, options: dict) -> dict:
    kind = transform.get('type')
    if kind == TRANSFORM:
        return {**transform, **options}
    if isinstance(kind, str) and kind.split('.')[-1] in LOADERS:
        return dict(type=TRANSFORM, transform=transform, **options)
    if kind == PAIR_LOADER:
        loader = transform.get('loader', dict(type='LoadImageFromFile'))
        return {**transform, 'loader': _wrapped(loader, options)}
    return transform
