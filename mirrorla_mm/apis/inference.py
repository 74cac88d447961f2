"""A trained detector or segmentor as a function from an image to what is in it."""

from __future__ import annotations

import colorsys
import copy
import os
from collections import Counter
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.fileio import list_from_file
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader

from ..engine.checkpoint import require_file
from ..engine.checkpoint_fit import check_fit
from ..engine.configs import read_config
from ..engine.data import DataError
from ..engine.devices import usable_device
from ..engine.errors import UserError
from ..engine.images import read_image
from ..engine.launch import gpu_without_ops
from .drawing import draw_instances, draw_label_map

SCOPES = ('mmdet', 'mmseg')


@dataclass(frozen=True)
class Prediction:
    """Findings of a model in an image of H x W pixels: instances or a label map.

    Attributes:
        size (tuple[int, int]): H and W.
        classes (tuple[str, ...]): Names of the classes.
        palette (tuple): Their colours, (red, green, blue) of 0 to 255.
        labels (np.ndarray): Class of each of the N instances, by falling score.
        scores (np.ndarray): Of 0 to 1, shape (N,).
        boxes (np.ndarray): Left, top, right, bottom in pixels, shape (N, 4).
        masks (np.ndarray, optional): Shape (N, H, W), bool.
        label_map (np.ndarray, optional): Class of each pixel, shape (H, W); None of a detector.
    """

    size: tuple[int, int]
    classes: tuple[str, ...]
    palette: tuple
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None = None
    label_map: np.ndarray | None = None

    @property
    def names(self) -> list[str]:
        """Class names of the instances."""
        return [self.classes[label] for label in self.labels]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the image of each class that is in the label map, the largest first."""
        labels, pixels = np.unique(self.label_map, return_counts=True)
        found = sorted(zip(pixels / self.label_map.size, labels), reverse=True)
        return {self.classes[label]: float(share) for share, label in found}

    def above(self, score: float) -> Prediction:
        """The instances of at least this score; a label map stays as it is."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        parts = dict(labels=self.labels[kept], scores=self.scores[kept], boxes=self.boxes[kept])
        return replace(self, **parts, masks=masks)

    def draw(self, image: np.ndarray) -> np.ndarray:
        """Draw the prediction over its image.

        Args:
            image (np.ndarray): BGR, shape (H, W, 3), uint8.

        Returns:
            np.ndarray: A new image, likewise.
        """
        if self.label_map is not None:
            return draw_label_map(image, self.label_map, self.classes, self.palette)
        colours = [self.palette[label] for label in self.labels]
        texts = [f'{name} {score:.2f}' for name, score in zip(self.names, self.scores)]
        return draw_instances(image, self.boxes, texts, colours, self.masks)

    def summary(self) -> str:
        """Say in a few words what was found."""
        if self.label_map is not None:
            return ', '.join(f'{name} {share:.0%}' for name, share in self.shares.items())
        counts = Counter(self.names)
        return ', '.join(f'{count} {name}' for name, count in counts.items()) or 'nothing'

    def to_dict(self) -> dict:
        """The prediction as JSON has it; masks in COCO's run-length encoding."""
        height, width = self.size
        if self.label_map is not None:
            return dict(width=width, height=height, shares=self.shares)
        found = dict(
            width=width,
            height=height,
            names=self.names,
            labels=self.labels.tolist(),
            scores=[round(float(score), 4) for score in self.scores],
            bboxes=[[round(float(side), 2) for side in box] for box in self.boxes],
        )
        if self.masks is not None:
            from pycocotools import mask

            encoded = [mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in self.masks]
            found['masks'] = [{**m, 'counts': m['counts'].decode()} for m in encoded]
        return found


class Inferencer:
    """A trained detector or segmentor.

    Args:
        config (str | os.PathLike | Config): Config, also as ``mmdet::NAME`` of a package.
        checkpoint (str | os.PathLike): Its weights, a file or URL.
        device (str, optional): Such as ``'cuda:0'``. Defaults to a GPU where there is one that the
            model runs on.
        cfg_options (dict, optional): Settings to override, by dotted name.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another model.
        FileNotFoundError: If there is no checkpoint.
        UserError: If the config cannot be read, or is neither a detector's nor a segmentor's.

    Example:
        >>> model = Inferencer('config.py', 'epoch_12.pth')
        >>> found = model('street.jpg').above(0.5)
        >>> list(zip(found.names, found.scores, found.boxes))
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        checkpoint: str | os.PathLike,
        device: str | None = None,
        cfg_options: dict | None = None,
    ) -> None:
        require_file(checkpoint)
        self.cfg = _read_config(config, cfg_options)
        scope = self.cfg.get('default_scope')
        if scope not in SCOPES or 'model' not in self.cfg:
            raise UserError(
                f'A config for inference needs default_scope {" or ".join(SCOPES)}, got {scope!r}.'
            )
        if self.cfg.get('data_preprocessor'):  # as mmengine's Runner does
            self.cfg.model.setdefault('data_preprocessor', self.cfg.data_preprocessor)
        init_default_scope(scope)
        self.device = usable_device(device or _default_device(scope))
        weights = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
        # Some models write into their config.
        model = MODELS.build(copy.deepcopy(self.cfg.model))
        check_fit(model, weights, str(checkpoint))
        self.model = revert_sync_batchnorm(model).to(self.device).eval()
        dataset = _test_dataset(self.cfg)
        self.classes, self.palette = _classes(weights, dataset, model)
        self.pipeline = Compose([t for t in dataset.pipeline if not _loads(t)])

    @torch.no_grad()
    def __call__(self, image: str | os.PathLike | np.ndarray) -> Prediction:
        """Predict one image.

        Args:
            image (str | os.PathLike | np.ndarray): A file, or BGR of shape (H, W, 3), uint8.

        Returns:
            Prediction: Instances by falling score, or a label map.

        Raises:
            DataError: If the file cannot be read, or the image is of a size that the config's
                pipeline cannot process.
        """
        name = 'The image'
        if not isinstance(image, np.ndarray):
            name, image = str(image), read_image(image)
        size = image.shape[:2]
        info = dict(img=image, img_shape=size, ori_shape=size, height=size[0], width=size[1])
        try:
            packed = self.pipeline(dict(info, img_path=name, img_id=0))
            sample = self.model.test_step(pseudo_collate([packed]))[0]
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if 'inv_scale' in reason:  # OpenCV's words
                reason = 'resized, a side would be less than a pixel'
            raise DataError(
                f'{name} of {size[1]} x {size[0]} pixels cannot be processed by this config '
                f'({reason}).'
            ) from error
        return self._prediction(sample, size)

    def _prediction(self, sample: Any, size: tuple[int, int]) -> Prediction:
        common = dict(size=size, classes=self.classes, palette=self.palette)
        if 'pred_sem_seg' in sample:
            label_map = sample.pred_sem_seg.data[0].cpu().numpy()
            label_map = label_map.astype(np.min_scalar_type(len(self.classes)))
            none = np.zeros(0)
            return Prediction(labels=none, scores=none, boxes=none, label_map=label_map, **common)
        found = sample.pred_instances.cpu()
        order = found.scores.argsort(descending=True)
        masks = found.masks[order.numpy()] if 'masks' in found else None
        return Prediction(
            labels=found.labels[order].numpy(),
            scores=found.scores[order].numpy(),
            boxes=found.bboxes[order].numpy(),
            masks=None if masks is None else np.asarray(masks, bool),
            **common,
        )


def _read_config(config: str | os.PathLike | Config, options: dict | None) -> Config:
    if not isinstance(config, Config):
        return read_config(config, options)
    config = copy.deepcopy(config)
    config.merge_from_dict(options or {})
    return config


def _default_device(scope: str) -> str:
    if not torch.cuda.is_available() or (scope == 'mmdet' and gpu_without_ops()):
        return 'cpu'
    return 'cuda:0'


def _test_dataset(cfg: Config) -> Any:
    """The data set that the config is tested with, within its wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset or 'dataset' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset


def _loads(transform: dict) -> bool:
    """Whether a transform reads a file: images come as arrays, and there are no labels."""
    kind = transform['type']
    return (kind if isinstance(kind, str) else kind.__name__).split('.')[-1].startswith('Load')


def _classes(weights: dict, dataset: dict, model: torch.nn.Module) -> tuple[tuple, tuple]:
    """Names and colours of the classes: the checkpoint's, else the config's, else numbers."""
    stored = _stored_meta(weights)
    kind = dataset['type']
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as datasets:  # those of the default scope
            kind = datasets.get(kind)
    given = {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    classes = _as_names(stored.get('classes')) or _as_names(_read_names(given.get('classes')))
    count = _number_of_classes(model)
    classes += tuple(f'class {i}' for i in range(len(classes), count))
    own = [_colour(i) for i in range(len(classes))]
    palettes = (stored.get('palette'), given.get('palette'), own)
    palette = next(palette for palette in palettes if _is_palette(palette, len(classes)))
    return classes, tuple(tuple(map(int, colour)) for colour in palette)


def _stored_meta(weights: dict) -> dict:
    """What a checkpoint says of its data set; nothing where it has no such dict."""
    meta = weights.get('meta')
    stored = meta.get('dataset_meta') if isinstance(meta, dict) else None
    return {str(k).lower(): v for k, v in stored.items()} if isinstance(stored, dict) else {}


def _read_names(classes: Any) -> Any:
    """Classes of a config, where a text may be a file of them, as mmengine takes it.

    Not of a checkpoint: one that was downloaded could have any file read and shown.
    """
    is_file = isinstance(classes, str) and os.path.isfile(classes)
    return list_from_file(classes) if is_file else classes


def _as_names(classes: Any) -> tuple[str, ...]:
    """Names of classes, of which a text is the only one; none of anything else."""
    names = [classes] if isinstance(classes, str) else classes
    is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else ()


def _is_palette(palette: Any, count: int) -> bool:
    is_list = isinstance(palette, (list, tuple)) and len(palette) >= count
    return is_list and all(_is_colour(colour) for colour in palette)


def _is_colour(colour: Any) -> bool:
    is_triple = isinstance(colour, (list, tuple)) and len(colour) == 3
    return is_triple and all(isinstance(part, Real) and 0 <= part <= 255 for part in colour)


def _number_of_classes(model: torch.nn.Module) -> int:
    heads = [module for module in model.modules() if getattr(module, 'num_classes', None)]
    # A segmentor of one channel tells two classes apart by its threshold.
    by_threshold = any(getattr(head, 'threshold', None) is not None for head in heads)
    return max([2 * by_threshold, *(head.num_classes for head in heads)])


def _colour(index: int) -> tuple[int, ...]:
    # Hues that are the golden ratio apart stay distinct however many there are.
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(index * 0.618 % 1, 0.75, 0.9))
