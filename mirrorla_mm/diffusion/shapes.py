"""Drawn shapes: images of 32x32 pixels that a small model learns in minutes.

A dark background of one colour and one bright shape of another. The outline alone makes the class;
colours, place, size and turn say nothing of it.
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np
from mmengine.dataset import BaseDataset

from ..registry import DATASETS

CLASSES = ('disc', 'ring', 'square', 'triangle', 'star', 'cross')
SIZE = 32
_FACTOR = 4  # Drawn larger and then shrunk, for soft edges.


@DATASETS.register_module(force=True)
class DrawnShapes(BaseDataset):
    """Shapes that are drawn when they are asked for, the same for the same index and seed.

    Args:
        length (int): Number of images.
        seed (int): Another one draws other images. Defaults to 0.
        **kwargs: Options of :class:`mmengine.dataset.BaseDataset`, such as ``pipeline``.

    Note:
        A sample has ``img``, (3, 32, 32), uint8, and ``gt_label``.
    """

    METAINFO = dict(classes=CLASSES)

    def __init__(self, length: int, seed: int = 0, **kwargs) -> None:
        self.length = length
        self.seed = seed
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The classes in turn."""
        return [dict(number=index, gt_label=index % len(CLASSES)) for index in range(self.length)]

    def get_data_info(self, idx: int) -> dict:
        """Draw one."""
        data = super().get_data_info(idx)
        rng = np.random.default_rng((self.seed, data['number']))
        return dict(data, img=draw_shape(rng, data['gt_label']).transpose(2, 0, 1).copy())


def draw_shape(rng: np.random.Generator, label: int) -> np.ndarray:
    """An image of a class of :data:`CLASSES`: RGB, (32, 32, 3), uint8."""
    side = SIZE * _FACTOR
    dark, bright = (_colour(rng, *values) for values in ((0.1, 0.35), (0.75, 1.0)))
    image = np.full((side, side, 3), dark, np.uint8)
    radius = side * rng.uniform(0.25, 0.36)
    centre = rng.uniform(1.05 * radius, side - 1.05 * radius, 2)
    turn = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    contours = [
        np.round(points @ rotation.T * radius + centre).astype(np.int32)
        for points in _outline(CLASSES[label])
    ]
    cv2.fillPoly(image, contours, bright)
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _outline(name: str) -> list[np.ndarray]:
    """Contours around the origin, of radius 1; what two of them enclose is a hole."""
    if name == 'ring':
        return [_corners(48), 0.5 * _corners(48)]
    if name == 'star':
        return [_corners(10) * np.tile([1.0, 0.4], 5)[:, None]]
    if name == 'cross':
        a, b = 0.95, 0.3
        right = np.array([[b, -b], [a, -b], [a, b]])
        quarter = np.array([[0, 1], [-1, 0]])
        arms = [right @ np.linalg.matrix_power(quarter, k) for k in range(4)]
        return [np.concatenate(arms)]
    return [_corners({'disc': 48, 'square': 4, 'triangle': 3}[name])]


def _corners(number: int) -> np.ndarray:
    angle = 2 * math.pi * np.arange(number) / number
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _colour(rng: np.random.Generator, low: float, high: float) -> tuple[int, ...]:
    """RGB of a brightness between two bounds."""
    hsv = rng.uniform(0, 1), rng.uniform(0.4, 0.9), rng.uniform(low, high)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*hsv))
