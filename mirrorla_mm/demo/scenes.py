"""Drawn scenes with exact labels: the images that ``make quickstart`` learns from.

A scene is a textured background with overlapping shapes of five classes. The outline makes the
class; the colour hints at it, so that minutes of training show, and texture, size and orientation
say nothing. Every pixel belongs to the topmost shape that covers it, so instance masks, boxes and
the label map come from one instance map and cannot disagree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ('disc', 'square', 'triangle', 'star', 'ring')
BACKGROUND = 'background'
"""Class 0 of the label map; shape class ``i`` of :data:`CLASSES` is ``i + 1`` there."""

PALETTE = ((72, 76, 84), (230, 57, 70), (29, 120, 216), (244, 180, 26), (131, 56, 236),
           (36, 170, 104))  # yapf: disable
"""RGB of the background and of each class in label maps and drawn boxes."""

HUES = (0, 216, 72, 288, 144)
"""Mean hue of each class in degrees; single shapes are tens of degrees away from it."""

MAX_SHAPES = 6
RADIUS_RANGE = (0.10, 0.28)
"""Circumscribed radius of a shape as a fraction of the image's side."""
MIN_VISIBLE = 0.7
"""A shape stays if at least this fraction of it can be seen: as much as tells what it is."""

_FIXED_POINT_BITS = 4


@dataclass(frozen=True)
class Scene:
    """A drawn image and its labels.

    Attributes:
        image: (S, S, 3) uint8, RGB.
        instances: (S, S) uint8; 0 is background, ``i + 1`` the visible part of instance ``i``.
        labels: index into :data:`CLASSES` of each instance.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: tuple[int, ...]

    def masks(self) -> np.ndarray:
        """Visible masks of the instances, (number of instances, S, S) bool."""
        return self.instances[None] == np.arange(1, len(self.labels) + 1)[:, None, None]

    def label_map(self) -> np.ndarray:
        """Semantic labels, (S, S) uint8: 0 is background, ``i + 1`` is ``CLASSES[i]``."""
        return np.array([0, *(label + 1 for label in self.labels)], np.uint8)[self.instances]


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draw a scene of 1 to :data:`MAX_SHAPES` overlapping shapes on a textured background.

    Args:
        rng: source of every random choice; the same state gives the same scene.
        size: side of the square image in pixels, at least 64.

    Raises:
        ValueError: if ``size`` is too small for the smallest shape to be recognisable.
    """
    if size < 64:
        raise ValueError(f'a scene needs a side of at least 64 pixels, got {size}')
    image = _texture(rng, size, hue=rng.uniform(0, 360), saturation=(0.05, 0.35))
    instances = np.zeros((size, size), np.uint8)
    labels: list[int] = []
    full_areas: list[int] = []
    for _ in range(rng.integers(1, MAX_SHAPES + 1)):
        label = int(rng.integers(len(CLASSES)))
        mask = _shape_mask(rng, CLASSES[label], size)
        area = np.count_nonzero(mask)
        candidate = np.where(mask, np.uint8(len(labels) + 1), instances)
        seen = np.bincount(candidate.ravel(), minlength=len(labels) + 2)[1:]
        if np.any(seen < MIN_VISIBLE * np.array([*full_areas, area])):
            continue  # it would hide an earlier shape
        instances = candidate
        labels.append(label)
        full_areas.append(area)
        texture = _texture(rng, size, rng.normal(HUES[label], 18), saturation=(0.45, 0.95))
        image = _paste(image, mask, texture)
    image += 5 * rng.standard_normal(image.shape, np.float32)
    return Scene(np.clip(image, 0, 255).round().astype(np.uint8), instances, tuple(labels))


def _outline(name: str) -> list[np.ndarray]:
    """Closed contours of a shape of radius 1 around the origin; inside is even-odd."""
    if name == 'star':
        return [_regular_polygon(10) * np.tile([1.0, 0.45], 5)[:, None]]
    if name == 'ring':
        return [_regular_polygon(48), 0.55 * _regular_polygon(48)]
    return [_regular_polygon({'disc': 48, 'square': 4, 'triangle': 3}[name])]


def _regular_polygon(corners: int) -> np.ndarray:
    angle = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _shape_mask(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Draw a shape somewhere in the image, turned and slightly squeezed; (S, S) bool."""
    low, high = np.log(RADIUS_RANGE)
    radius = size * math.exp(rng.uniform(low, high))
    turn, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.85, 1.0)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    # A shape may be cut by the image's border, by less than half of its radius.
    centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
    contours = [
        np.round((points * [1, squeeze] @ rotation.T * radius + centre) * 2**_FIXED_POINT_BITS)
        for points in _outline(name)
    ]
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [c.astype(np.int32) for c in contours], 1, cv2.LINE_8, _FIXED_POINT_BITS)
    return mask.astype(bool)


def _paste(image: np.ndarray, mask: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """Lay a textured shape with a soft edge and a soft shadow over the image."""
    size = len(mask)
    opacity = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.6)[..., None]
    shift = np.float32([[1, 0, 2], [0, 1, 3]])
    shadow = cv2.warpAffine(mask.astype(np.float32), shift, (size, size))
    shaded = image * (1 - 0.45 * cv2.GaussianBlur(shadow, (9, 9), 2.0)[..., None])
    return opacity * texture + (1 - opacity) * shaded


def _texture(
    rng: np.random.Generator, size: int, hue: float, saturation: tuple[float, float]
) -> np.ndarray:
    """A random pattern between two colours near a hue in degrees, (S, S, 3) float32 in 0...255."""
    pattern: Callable = (_noise, _stripes, _checks, _slope)[rng.integers(4)]
    weight = pattern(rng, size)[..., None]
    return weight * _colour(rng, hue, saturation) + (1 - weight) * _colour(rng, hue, saturation)


def _colour(rng: np.random.Generator, hue: float, saturation: tuple[float, float]) -> np.ndarray:
    """An RGB colour in 0...255 near a hue in degrees."""
    hsv = [rng.normal(hue, 12) % 360, rng.uniform(*saturation), rng.uniform(0.35, 0.95)]
    return 255 * cv2.cvtColor(np.float32([[hsv]]), cv2.COLOR_HSV2RGB)[0, 0]


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise: random grids of rising resolution, each half as strong as the one before."""
    octaves = [
        cv2.resize(
            rng.random((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
        for cells in (4, 8, 16, 32)
    ]
    total = sum(0.5**i * octave for i, octave in enumerate(octaves))
    return (total - total.min()) / np.ptp(total)


def _phase(rng: np.random.Generator, size: int, period: tuple[float, float]) -> np.ndarray:
    """Phase in radians of a plane wave in a random direction, (S, S)."""
    angle, offset = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    steps = np.arange(size, dtype=np.float32)
    along = steps[:, None] * math.sin(angle) + steps * math.cos(angle)
    return 2 * math.pi * along / rng.uniform(*period) + offset


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(3 * np.sin(_phase(rng, size, (6, 20))))


def _checks(rng: np.random.Generator, size: int) -> np.ndarray:
    waves = np.sin(_phase(rng, size, (8, 24))) * np.sin(_phase(rng, size, (8, 24)))
    return 0.5 + 0.5 * np.tanh(4 * waves)


def _slope(rng: np.random.Generator, size: int) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(_phase(rng, size, (1.5 * size, 3.0 * size)))
