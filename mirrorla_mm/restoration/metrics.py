"""PSNR and SSIM as the super-resolution benchmarks are evaluated."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from torch import Tensor

from ..engine.finite import require_finite
from ..registry import METRICS


class ImageMetric(BaseMetric):
    """A figure of each image, averaged over each data set, and over all of them.

    Before it is compared, a prediction is rounded to 8 bits, a border is cut off, and of both
    images the luma is taken. Samples are told apart by their ``dataset``: a run over several
    sets reports a row for each, and the mean of these rows.

    Args:
        crop_border (int, optional): Pixels to cut off at each side. Defaults to the sample's
            scale, as the benchmarks are evaluated.
        convert_to (str, optional): ``'Y'`` (BT.601, studio range) or None for RGB as it is.
            Defaults to ``'Y'``.
        **kwargs: Options of :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ValueError: If ``convert_to`` is neither.
    """

    name: str
    default_prefix = ''

    def __init__(
        self, crop_border: int | None = None, convert_to: str | None = 'Y', **kwargs
    ) -> None:
        super().__init__(**kwargs)
        if convert_to not in ('Y', None):
            raise ValueError(f"convert_to needs to be 'Y' or None, got {convert_to!r}.")
        self.crop_border = crop_border
        self.convert_to = convert_to

    @abstractmethod
    def compare(self, image: np.ndarray, truth: np.ndarray) -> float:
        """The figure of two images in [0, 255], shape (H, W, C), float64."""

    def process(self, data_batch: dict | None, data_samples: Sequence[dict]) -> None:
        """Compare each ``pred_img`` in [0, 1] with its ``gt_img`` in 0..255, (3, H, W) both.

        Raises:
            UserError: If a prediction holds NaN or infinity.
        """
        for sample in data_samples:
            image = to_uint8(sample['pred_img'], _prediction_for(sample))
            figure = self.measure(image, to_uint8(sample['gt_img']), sample)
            self.results.append((sample.get('dataset', ''), figure))

    def measure(self, image: np.ndarray, truth: np.ndarray, sample: dict) -> float:
        """The figure of two 8-bit RGB images of shape (H, W, 3).

        Raises:
            ValueError: If they differ in size, or nothing is left of them but the border.
        """
        border = sample.get('scale', 0) if self.crop_border is None else self.crop_border
        if image.shape != truth.shape:
            raise ValueError(
                f'{_prediction_for(sample)} has {image.shape[1]}x{image.shape[0]} pixels, its '
                f'ground truth {truth.shape[1]}x{truth.shape[0]}.'
            )
        if min(truth.shape[:2]) <= 2 * border:
            where = sample.get('gt_path', 'an image')
            raise ValueError(f'{where} is too small to cut a border of {border} pixels off.')
        if border:
            image, truth = (x[border:-border, border:-border] for x in (image, truth))
        return self.compare(*(self._channels(x) for x in (image, truth)))

    def _channels(self, image: np.ndarray) -> np.ndarray:
        if self.convert_to is None:
            return image.astype(np.float64)
        # On 8-bit images mmcv would round.
        luma = mmcv.rgb2ycbcr(image.astype(np.float32) / 255, y_only=True)
        return luma[..., None].astype(np.float64) * 255

    def compute_metrics(self, results: list[tuple[str, float]]) -> dict[str, float]:
        """Mean of each data set, and with several the mean of them."""
        figures: dict[str, list[float]] = {}
        for dataset, figure in results:
            figures.setdefault(dataset, []).append(figure)
        means = {dataset: float(np.mean(values)) for dataset, values in figures.items()}
        if len(means) == 1:
            return {self.name: next(iter(means.values()))}
        rows = {f'{dataset}/{self.name}': value for dataset, value in means.items()}
        return {**rows, self.name: float(np.mean(list(means.values())))}


@METRICS.register_module(force=True)
class PSNR(ImageMetric):
    """Peak signal-to-noise ratio in dB, infinite for equal images; see :class:`ImageMetric`."""

    name = 'PSNR'

    def compare(self, image: np.ndarray, truth: np.ndarray) -> float:
        error = np.mean((image - truth) ** 2)
        return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@METRICS.register_module(force=True)
class SSIM(ImageMetric):
    """Structural similarity, at most 1; see :class:`ImageMetric`.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE TIP 2004, with its Gaussian window of 11x11 pixels and sigma 1.5, where the
    whole window lies in the image.
    """

    name = 'SSIM'

    def compare(self, image: np.ndarray, truth: np.ndarray) -> float:
        if min(truth.shape[:2]) < WINDOW:
            raise ValueError(
                f'SSIM needs {WINDOW}x{WINDOW} pixels at least, '
                f'an image has {truth.shape[1]}x{truth.shape[0]} left.'
            )
        return ssim(*(torch.from_numpy(x).permute(2, 0, 1) for x in (image, truth)))


def _prediction_for(sample: dict) -> str:
    return f'The prediction for {sample.get("gt_path", "an image")}'


WINDOW = 11
SIGMA = 1.5
STABILITY = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)


def ssim(x: Tensor, y: Tensor) -> float:
    """Mean structural similarity of two images (C, H, W) in [0, 255], float64."""
    c1, c2 = STABILITY
    mean_x, mean_y, xx, yy, xy = blur(torch.stack((x, y, x * x, y * y, x * y)))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean().item()


def blur(x: Tensor) -> Tensor:
    """Gaussian mean of each window of (n, C, H, W) that lies in the image."""
    offsets = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    kernel = (-(offsets**2) / (2 * SIGMA**2)).exp()
    kernel = kernel / kernel.sum()
    images = x.flatten(0, 1).unsqueeze(1)
    blurred = F.conv2d(F.conv2d(images, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred.view(*x.shape[:2], *blurred.shape[-2:])


def to_uint8(image: Tensor, what: str = 'An image') -> np.ndarray:
    """(3, H, W), a float image in [0, 1] or an 8-bit one, to (H, W, 3), 8-bit.

    Raises:
        UserError: If it holds NaN or infinity, naming ``what``.
    """
    require_finite(image, what)
    if image.is_floating_point():
        image = (image.float() * 255).round().clamp(0, 255).byte()
    return image.permute(1, 2, 0).cpu().numpy()
