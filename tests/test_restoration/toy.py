"""Small hosts and small folders of images, for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mirrorla_mm.restoration import DCTLSA
from mirrorla_mm.restoration.resize import downscale
from tests.norms import with_statistics

TOY = dict(embed_dims=8, num_heads=2, window_size=4, num_groups=2)


def toy_host(**options) -> DCTLSA:
    """A host of some thousand parameters whose batch norms have seen something."""
    return with_statistics(DCTLSA(**{**TOY, 'upscale': 2, **options}))


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth BGR image with edges, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (width // 2, height // 2), min(height, width) // 3, (0, 200, 255), -1)
    return image


def write_benchmark(root: Path, sizes: list[tuple[int, int]], scale: int = 2) -> Path:
    """Drawn images in ``root/HR`` with their low-resolution partners."""
    (root / 'HR').mkdir(parents=True)
    (root / f'LR_bicubic/X{scale}').mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        image = draw(height, width, number)
        cv2.imwrite(str(root / f'HR/{number}.png'), image)
        small = downscale(image, scale)
        cv2.imwrite(str(root / f'LR_bicubic/X{scale}/{number}x{scale}.png'), small)
    return root
