"""Enlarged images beside each other, as in the paper's Fig. 3 and 4."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from ..engine.figures import save_figure
from .metrics import PSNR
from .resize import upscale


def find_detail(truth: np.ndarray, bicubic: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the square of ``size`` pixels where bicubic interpolation errs most."""
    error = ((truth.astype(float) - bicubic) ** 2).mean(-1)
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    totals = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(totals.argmax(), totals.shape)
    return int(top), int(left)


def compare_images(
    path: Path,
    truth: np.ndarray,
    image: np.ndarray,
    results: dict[str, np.ndarray],
    size: int = 64,
    title: str = '',
) -> None:
    """Draw the whole image and a zoomed crop: bicubic, each result with its PSNR, ground truth.

    Args:
        path (Path): PNG to write.
        truth (np.ndarray): RGB, shape (s * h, s * w, 3), uint8.
        image (np.ndarray): RGB, shape (h, w, 3), uint8.
        results (dict): Label to enlarged image, RGB, shape of ``truth``.
        size (int): Side of the crop in pixels of the truth. Defaults to 64.
        title (str): Above all.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    scale = truth.shape[0] // image.shape[0]
    bicubic = upscale(image, scale)
    size = min(size, *truth.shape[:2])
    top, left = find_detail(truth, bicubic, size)
    panels = {'bicubic': bicubic, **results, 'ground truth': truth}
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(3.6 + 1.9 * columns, 4.6), layout='constrained')
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[1.8, *[1] * columns])
    whole = figure.add_subplot(grid[:, 0])
    whole.imshow(truth)
    whole.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor='red', lw=2))
    whole.set_title(title)
    whole.axis('off')
    metric = PSNR(crop_border=0)
    for number, (label, panel) in enumerate(panels.items()):
        axis = figure.add_subplot(grid[number // columns, number % columns + 1])
        crops = [x[top : top + size, left : left + size] for x in (panel, truth)]
        axis.imshow(crops[0], interpolation='nearest')
        decibels = '' if panel is truth else f'\n{metric.measure(*crops, {}):.2f} dB'
        axis.set_title(f'{textwrap.fill(label, 20)}{decibels}', fontsize='small')
        axis.axis('off')
    save_figure(figure, path, dpi=150)
