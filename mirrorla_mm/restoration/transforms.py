"""Transforms of pairs: the image ``img`` and its ground truth ``gt``, larger by ``scale``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.structures import BaseDataElement

from ..engine.data import DataError
from ..registry import TRANSFORMS
from .resize import downscale

LOADER = dict(type='mirrorla_mm.CheckedLoading', transform=dict(type='LoadImageFromFile'))
META_KEYS = ('gt_path', 'img_path', 'scale', 'dataset', 'ori_shape', 'img_shape')


@TRANSFORMS.register_module(force=True)
class LoadImagePair(BaseTransform):
    """Load a ground truth and its low-resolution image, or make the latter.

    Rows and columns of the ground truth beyond ``scale`` times the image are left out. Without
    ``img_path`` the image is the ground truth, shrunk as MATLAB does.

    Required keys: ``gt_path``, ``scale``, optionally ``img_path``. Added keys: ``gt``, ``img``
    (both BGR, 8 bits), ``img_shape``, ``ori_shape``.

    Args:
        loader (dict): How to load one image. Defaults to mmcv's loader, checked by
            :class:`~mirrorla_mm.engine.bad_data.CheckedLoading`.

    Raises:
        DataError: If a file cannot be read or is cut short, or a ground truth is smaller than
            ``scale`` times its image, or larger by ``scale`` or more.
    """

    def __init__(self, loader: dict | None = None) -> None:
        self.load = ROOT_TRANSFORMS.build(loader or LOADER)

    def transform(self, results: dict) -> dict | None:
        """Load both, or None where one of them is to be skipped."""
        scale = results['scale']
        paths = [results[key] for key in ('gt_path', 'img_path') if key in results]
        loaded = [self.load(dict(img_path=path)) for path in paths]
        if None in loaded:
            return None
        gt, *img = (result['img'] for result in loaded)
        img = img[0] if img else downscale(gt, scale)
        height, width = img.shape[:2]
        if not is_of_size(gt, (scale * height, scale * width), scale):
            raise DataError(
                f'{results["gt_path"]} ({gt.shape[1]}x{gt.shape[0]} pixels) is not {scale} times '
                f'its image {results.get("img_path")} ({width}x{height}).'
            )
        results.update(gt=gt[: scale * height, : scale * width], img=img)
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results


def is_of_size(truth: np.ndarray, size: tuple[int, int], scale: int) -> bool:
    """Whether a ground truth has this height and width, or less than ``scale`` pixels more."""
    return all(0 <= n - wanted < scale for n, wanted in zip(truth.shape, size))


@TRANSFORMS.register_module(force=True)
class PairedRandomCrop(BaseTransform):
    """Cut the same square out of an image and its ground truth.

    Required keys: ``gt``, ``img``, ``scale``. Modified keys: ``gt``, ``img``, ``img_shape``.

    Args:
        size (int): Side in pixels of the image; that of the ground truth is ``scale`` times it.

    Raises:
        DataError: If the image is smaller.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @cache_randomness
    def _corner(self, height: int, width: int) -> tuple[int, int]:
        return tuple(int(np.random.randint(n - self.size + 1)) for n in (height, width))

    def transform(self, results: dict) -> dict:
        """Crop both."""
        height, width = results['img'].shape[:2]
        if min(height, width) < self.size:
            raise DataError(
                f'{results["gt_path"]} has {width}x{height} pixels at low resolution, less than '
                f'the {self.size}x{self.size} that are cut out for training.'
            )
        return cut(results, self._corner(height, width), (self.size, self.size))


@TRANSFORMS.register_module(force=True)
class PairedCenterCrop(BaseTransform):
    """Keep the middle of an image and its ground truth; what is smaller stays whole.

    Required keys: ``gt``, ``img``, ``scale``. Modified keys: ``gt``, ``img``, ``img_shape``.

    Args:
        size (tuple[int, int]): Height and width in pixels of the image; those of the ground truth
            are ``scale`` times them.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = tuple(size)

    def transform(self, results: dict) -> dict:
        """Crop both."""
        size = [min(n, m) for n, m in zip(self.size, results['img'].shape)]
        corner = [(n - m) // 2 for n, m in zip(results['img'].shape, size)]
        return cut(results, corner, size)


def cut(results: dict, corner: Sequence[int], size: Sequence[int]) -> dict:
    """Keep a rectangle of the image, and what it shows of the ground truth.

    Args:
        results (dict): With ``img``, ``gt`` and ``scale``.
        corner (Sequence[int]): Top and left in pixels of the image.
        size (Sequence[int]): Height and width, likewise.
    """
    for key, factor in (('img', 1), ('gt', results['scale'])):
        rows, columns = (slice(factor * a, factor * (a + n)) for a, n in zip(corner, size))
        results[key] = results[key][rows, columns]
    results['img_shape'] = results['img'].shape[:2]
    return results


@TRANSFORMS.register_module(force=True)
class PairedRandomFlip(BaseTransform):
    """Flip an image and its ground truth, and swap rows and columns: one of 8 ways for squares.

    Required keys: ``gt``, ``img``. Modified keys: ``gt``, ``img``, ``img_shape``.

    Args:
        prob (float): Probability of each of the three. Defaults to 0.5.
        transpose (bool): Swap rows and columns too. Defaults to True.
    """

    def __init__(self, prob: float = 0.5, transpose: bool = True) -> None:
        self.prob = prob
        self.transpose = transpose

    @cache_randomness
    def _draw(self) -> np.ndarray:
        return np.random.rand(3) < self.prob

    def transform(self, results: dict) -> dict:
        """Flip both."""
        upside_down, left_right, swap = self._draw()
        for key in ('img', 'gt'):
            image = results[key][:: -1 if upside_down else 1, :: -1 if left_right else 1]
            results[key] = image.swapaxes(0, 1) if swap and self.transpose else image
        results['img_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module(force=True)
class PackRestorationInputs(BaseTransform):
    """BGR arrays to RGB tensors: ``inputs`` (3, h, w) and a data sample with ``gt_img`` (3, H, W).

    Required keys: ``gt``, ``img``. Both stay 8 bits; the model's preprocessor scales them.

    Args:
        meta_keys (Sequence[str]): What the data sample's ``metainfo`` takes over, where present.
    """

    def __init__(self, meta_keys: Sequence[str] = META_KEYS) -> None:
        self.meta_keys = meta_keys

    def transform(self, results: dict) -> dict:
        """Pack both."""
        sample = BaseDataElement(
            metainfo={key: results[key] for key in self.meta_keys if key in results},
            gt_img=to_tensor(results['gt']),
        )
        return dict(inputs=to_tensor(results['img']), data_samples=sample)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) BGR to (3, H, W) RGB."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
