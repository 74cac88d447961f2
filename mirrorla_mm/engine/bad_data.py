"""What happens to pictures and labels that would train a model on something false.

OpenCV before 5 fills the rest of a cut-off JPEG with grey, a label picture of another size or with
a class that does not exist fails late or not at all, and mmdet leaves out boxes without saying so.
Here each is found where it is read, refused or skipped by a policy that the user names, and
reported.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.runner import Runner
from PIL import Image

from ..registry import HOOKS, TRANSFORMS
from .data import DataError

__all__ = ['BadDataHook', 'CheckedLoading', 'check_loading', 'report_dropped_boxes']

POLICIES = ('refuse', 'skip')
LOADERS = ('LoadImageFromFile', 'LoadAnnotations')
TRANSFORM = 'mirrorla_mm.CheckedLoading'
HOOK = 'mirrorla_mm.BadDataHook'
# The last bytes of a whole file, by its first ones.
ENDINGS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND\xaeB\x60\x82'}
# What OpenCV, Pillow and OpenMMLab's loaders raise at damaged files.
LOADING_ERRORS = (
    OSError,
    ValueError,
    AssertionError,
    TypeError,
    AttributeError,
    SyntaxError,
    cv2.error,
)
SHOWN = 5


@TRANSFORMS.register_module(force=True)
class CheckedLoading(BaseTransform):
    """A loading transform, and whether what it loaded can be trusted.

    Found are: files that are missing, unreadable or cut short; pictures whose size is not the one
    that their annotations were made for; label pictures of another size than the picture, or with
    classes that the model does not have. Grey, 16-bit and RGBA pictures are sound: the loader
    makes 8-bit BGR of them.

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
        try:
            loaded = self.load(results)
            problem = self._problem(loaded, before)
        except LOADING_ERRORS as error:
            loaded, problem = None, f'cannot be loaded ({_first_line(error)})'
            problem = _cut_short(self._path(results, before)) or problem
        if problem is None:
            return loaded
        path = self._path(results, before)
        if self.policy == 'refuse':
            raise DataError(
                f'{path} {problem}. Mend it, or train with --bad-data skip to leave it out.'
            )
        self._note(path, problem)
        return None

    def _problem(self, results: dict, before: set[str]) -> str | None:
        if 'img' not in before:
            return _cut_short(results.get('img_path')) or _other_size(results)
        if 'gt_seg_map' in results and 'gt_seg_map' not in before:
            path = results.get('seg_map_path')
            return _cut_short(path) or self._wrong_labels(results)
        return None

    def _wrong_labels(self, results: dict) -> str | None:
        labels, size = results['gt_seg_map'], tuple(results['ori_shape'][:2])
        if labels.ndim != 2:
            return f'has {labels.shape[-1]} channels where a class index is expected'
        if labels.shape != size:
            return f'is {_size(labels.shape)}, but its picture is {_size(size)}'
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


def _cut_short(path: Any) -> str | None:
    """Whether a local file ends before its format does."""
    if not isinstance(path, str) or '://' in path or not Path(path).is_file():
        return None
    with open(path, 'rb') as file:
        ending = ENDINGS.get(file.read(2))
        if ending is None:
            return None
        file.seek(-min(len(ending), Path(path).stat().st_size), 2)
        if file.read() == ending:
            return None
    # Some cameras append data of their own: then only decoding tells.
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError):
        return 'is cut short: the file ends before the picture does'
    return None


def _other_size(results: dict) -> str | None:
    """Whether the annotations were made for a picture of another size."""
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
    """Reports, at the end of training, how many samples were skipped and which.

    Args:
        log (str): The file that :class:`CheckedLoading` writes.
    """

    def __init__(self, log: str) -> None:
        self.log = Path(log)

    def before_train(self, runner: Runner) -> None:
        """Report the boxes that the data set left out."""
        for dataset in _datasets(runner.train_dataloader.dataset):
            dropped = getattr(dataset, 'dropped_boxes', None)
            if dropped:
                counts = Counter(problem for _, problem in dropped)
                reasons = ', '.join(f'{count} {reason}' for reason, count in counts.items())
                runner.logger.warning(
                    f'{dataset.ann_file}: boxes left out: {reasons}; in '
                    f'{_shown([name for name, _ in dropped])}.'
                )

    def after_train(self, runner: Runner) -> None:
        """Report the samples skipped."""
        if not self.log.is_file():
            return
        problems = {}
        for line in self.log.read_text(encoding='utf-8').splitlines():
            entry = json.loads(line)
            problems[entry['path']] = entry['problem']
        runner.logger.warning(
            f'{len(problems)} samples were skipped as bad data: '
            f'{_shown([f"{path} {problem}" for path, problem in problems.items()])}. All of them '
            f'are listed in {self.log}.'
        )


def _shown(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return '; '.join(names[:SHOWN]) + more


def _datasets(dataset: Any) -> Iterator[Any]:
    """A data set and those that it wraps."""
    yield dataset
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]:
        if inner is not None:
            yield from _datasets(inner)


def check_loading(cfg: Config, policy: str = 'refuse') -> None:
    """Check whatever a config's pipelines load, and report it.

    Evaluation always refuses: a score over fewer pictures than it says would be false.

    Args:
        cfg (Config): Of a training run, with ``work_dir``.
        policy (str): For training, ``'refuse'`` or ``'skip'``.
    """
    head = cfg.get('model', {}).get('decode_head') or {}
    head = head[-1] if isinstance(head, list) else head
    options = dict(num_classes=head.get('num_classes'), ignore_index=head.get('ignore_index', 255))
    log = str(Path(cfg.work_dir) / 'bad_data.jsonl')
    _wrap(cfg.get('train_dataloader'), policy=policy, log=log, **options)
    # Not that of testing: inferencers look for the bare loader in its pipeline.
    _wrap(cfg.get('val_dataloader'), **options)
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') != HOOK]
    cfg.custom_hooks = [*hooks, dict(type=HOOK, log=log)]
    report_dropped_boxes()


def _wrap(node: Any, **options: Any) -> None:
    """Wrap the loaders of every pipeline below a node of a config."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _wrap(item, **options)
    if not isinstance(node, dict):
        return
    for key, child in node.items():
        if key == 'pipeline' and isinstance(child, list):
            node[key] = [_wrapped(transform, options) for transform in child]
        else:
            _wrap(child, **options)


def _wrapped(transform: dict, options: dict) -> dict:
    kind = transform.get('type')
    if kind == TRANSFORM:
        return {**transform, **options}
    if isinstance(kind, str) and kind.split('.')[-1] in LOADERS:
        return dict(type=TRANSFORM, transform=transform, **options)
    return transform


def report_dropped_boxes() -> None:
    """Let mmdet's COCO data sets remember which boxes they leave out, and why.

    They leave them out whether or not this is called. Calling it again changes nothing.
    """
    try:
        from mmdet.datasets import CocoDataset
    except ImportError:
        return
    if not hasattr(CocoDataset.parse_data_info, '__wrapped__'):
        CocoDataset.parse_data_info = _remembering(CocoDataset.parse_data_info)


def _remembering(parse: Callable) -> Callable:
    @functools.wraps(parse)
    def remember(self: Any, raw_data_info: dict) -> Any:
        picture = raw_data_info['raw_img_info']
        dropped = self.__dict__.setdefault('dropped_boxes', [])
        for annotation in raw_data_info['raw_ann_info']:
            problem = _box_problem(annotation, self.coco.cats)
            if problem:
                dropped.append((picture['file_name'], problem))
        return parse(self, raw_data_info)

    return remember


def _box_problem(annotation: dict, categories: dict) -> str | None:
    _, _, width, height = annotation['bbox']
    if annotation['area'] <= 0 or width < 1 or height < 1:
        return 'without an area'
    if annotation['category_id'] not in categories:
        return 'of a category that the file does not define'
    return None
