"""Folders of latents or images by class, and how they are loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from PIL import Image

from ..engine.data import DataError
from ..engine.images import open_image, opening_problem
from ..registry import DATASETS, TRANSFORMS

LATENTS = ('.npy',)
# Sides of an image that is enlarged as a whole before its centre is cut out: 99 bytes of 20000 x 1
# pixels would take gigabytes.
LARGEST_RATIO = 100
META_KEYS = ('img_path',)


@DATASETS.register_module(force=True)
class ClassFolders(BaseDataset):
    """A folder of latents or images for each class; classes are numbered by their sorted names.

    Args:
        data_root (str): Where the folders are, with files in them or further below.
        suffixes (tuple[str, ...]): Of the files, in any case. Defaults to ``.npy``, latents.
        **kwargs: Options of :class:`mmengine.dataset.BaseDataset`: ``pipeline``, ``indices``.

    Raises:
        DataError: If a folder is missing, or has no such files.

    Note:
        A sample has ``img_path`` and ``gt_label``.
    """

    def __init__(self, data_root: str, suffixes: tuple[str, ...] = LATENTS, **kwargs) -> None:
        self.suffixes = tuple(suffixes)
        super().__init__(data_root=data_root, data_prefix={}, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry for each file, class by class."""
        return [
            dict(img_path=str(path), gt_label=label)
            for label, folder in enumerate(class_folders(Path(self.data_root)))
            for path in files_of(folder, self.suffixes)
        ]


def class_folders(root: Path) -> list[Path]:
    """The folders of a data set, sorted.

    Raises:
        DataError: If there are none.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not folders:
        raise DataError(f'{root} holds no folders, one for each class.')
    return folders


def files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a class, sorted.

    Raises:
        DataError: If there are none.
    """
    lower = {suffix.lower() for suffix in suffixes}
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in lower)
    if not files:
        raise DataError(f'The folder {folder} holds no {", ".join(suffixes)}.')
    return files


@TRANSFORMS.register_module(force=True)
class LoadLatent(BaseTransform):
    """Load what ``tools/encode_latents.py`` wrote, and draw a latent from it.

    Required key: ``img_path``, an array (C, S, S) that is a latent, or (V, 2, C, S, S) of the mean
    and the standard deviation of V views (the image and its mirror image), of which one is drawn.
    Added key: ``img``, (C, S, S), float32.

    Raises:
        DataError: If the file cannot be read, has another shape, or holds what is no finite number.
    """

    def transform(self, results: dict) -> dict:
        """Load one."""
        array = read_array(results['img_path'])
        if array.dtype.kind not in 'fiu':
            raise DataError(
                f'{results["img_path"]} is no latent: it holds {array.dtype}, not real numbers.'
            )
        with np.errstate(over='ignore'):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(
                f'{results["img_path"]} is no latent: not all in it are finite numbers in float32.'
            )
        if array.ndim == 5 and len(array) and array.shape[1] == 2:
            mean, std = array[np.random.randint(len(array))]
            array = mean + std * np.random.standard_normal(mean.shape).astype(np.float32)
        if array.ndim != 3:
            raise DataError(
                f'{results["img_path"]} is no latent: its shape is {array.shape}, neither '
                '(channels, size, size) nor (views, 2, channels, size, size).'
            )
        return dict(results, img=array)


def read_array(path: str) -> np.ndarray:
    """An array of numbers; nothing in the file is executed.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f'{path} cannot be read: it is damaged or no .npy file.') from error


@TRANSFORMS.register_module(force=True)
class LoadSquareImage(BaseTransform):
    """Load an image as RGB, shrink it as a whole and cut its centre out, as DiT does.

    Required key: ``img_path``. Added key: ``img``, (3, size, size), uint8, mirrored in half of the
    cases where ``flip`` is set.

    Args:
        size (int): Side in pixels.
        flip (bool): Mirror at random. Defaults to True.

    Raises:
        DataError: If the file cannot be read.
    """

    def __init__(self, size: int, flip: bool = True) -> None:
        self.size = size
        self.flip = flip

    def transform(self, results: dict) -> dict:
        """Load one."""
        image = read_square(results['img_path'], self.size)
        if self.flip and np.random.rand() < 0.5:
            image = image[:, ::-1]
        return dict(results, img=np.ascontiguousarray(image.transpose(2, 0, 1)))


def read_square(path: str, size: int) -> np.ndarray:
    """The centre of an image whose shorter side has become ``size``: (size, size, 3), uint8.

    It is halved by means while that leaves it large enough, then interpolated bicubically. Of 16
    bits the upper 8 count.

    Raises:
        DataError: If it cannot be read, holds numbers of more bits, or is more than 100 times as
            long as wide.
    """
    problem = opening_problem(path)
    if problem:
        raise DataError(f'{path} {problem}.')
    try:
        image = in_8_bits(open_image(path)).convert('RGB')
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f'{path} cannot be read: {str(error) or "it is damaged"}.') from error
    if max(image.size) > LARGEST_RATIO * min(image.size):
        raise DataError(
            f'{path} has {image.width} x {image.height} pixels, and no square is cut out of a '
            f'strip more than {LARGEST_RATIO} times as long as wide: leave it out.'
        )
    while min(image.size) >= 2 * size:
        image = image.resize([side // 2 for side in image.size], Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def in_8_bits(image: Image.Image) -> Image.Image:
    """An image whose numbers Pillow would clip to 255, scaled; any other as it is.

    Raises:
        ValueError: If nothing says what its largest value is.
    """
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PNG'):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        raise ValueError('it holds numbers of 32 bits, and images of 8 or 16 bits are read')
    return image


@TRANSFORMS.register_module(force=True)
class PackDiffusionInputs(BaseTransform):
    """``inputs`` (C, S, S) and a data sample with ``gt_label``, from ``img`` and ``gt_label``."""

    def transform(self, results: dict) -> dict:
        """Pack one."""
        metainfo = {key: results[key] for key in META_KEYS if key in results}
        sample = BaseDataElement(metainfo=metainfo, gt_label=results['gt_label'])
        return dict(inputs=torch.from_numpy(results['img']), data_samples=sample)
