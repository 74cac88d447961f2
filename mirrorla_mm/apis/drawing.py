"""Draw predictions over images, so that what is certain is what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.5
SHOWN_SHARE = 0.005  # Regions of a label map that are smaller have no room for a name.
Colour = Sequence[int]
Rectangle = tuple[float, float, float, float]


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[Colour],
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Draw instances; the first, those of the highest scores, lie on top.

    Args:
        image (np.ndarray): BGR, shape (H, W, 3), uint8.
        boxes (np.ndarray): Left, top, right, bottom, shape (N, 4).
        texts (Sequence[str]): A label each.
        colours (Sequence): (red, green, blue) each.
        masks (np.ndarray, optional): Shape (N, H, W), bool.

    Returns:
        np.ndarray: A new image, likewise.
    """
    rgb = image[..., ::-1].copy()
    for i in reversed(range(len(boxes) if masks is not None else 0)):
        rgb[masks[i]] = (1 - OPACITY) * rgb[masks[i]] + OPACITY * np.array(colours[i])
    canvas = Image.fromarray(rgb)
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(min(canvas.size) / 250))
    for i in reversed(range(len(boxes))):
        pen.rectangle(_upright(boxes[i]), outline=tuple(colours[i]), width=width)
    taken: list[Rectangle] = []
    for box, text, colour in zip(boxes, texts, colours):
        _draw_label(pen, text, colour, _around(_upright(box)), taken)
    return np.array(canvas)[..., ::-1].copy()


def draw_label_map(
    image: np.ndarray, label_map: np.ndarray, classes: Sequence[str], palette: Sequence[Colour]
) -> np.ndarray:
    """Lay the colours of a label map over its image, with a name in each class's largest region.

    Args:
        image (np.ndarray): BGR, shape (H, W, 3), uint8.
        label_map (np.ndarray): Indices of classes, shape (H, W).
        classes (Sequence[str]): Names.
        palette (Sequence): (red, green, blue) of each class.

    Returns:
        np.ndarray: A new image, likewise.
    """
    colours = np.array(palette, np.float32)[label_map]
    rgb = ((1 - OPACITY) * image[..., ::-1] + OPACITY * colours).round().astype(np.uint8)
    canvas = Image.fromarray(rgb)
    pen = ImageDraw.Draw(canvas)
    labels, pixels = np.unique(label_map, return_counts=True)
    taken: list[Rectangle] = []
    for label in labels[np.argsort(-pixels)]:
        region = np.pad(label_map == label, 1)
        if region.sum() < SHOWN_SHARE * label_map.size:
            continue
        # The pixel that is furthest from the region's border.
        depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        _draw_label(pen, classes[label], palette[label], _centred(x, y), taken)
    return np.array(canvas)[..., ::-1].copy()


def _upright(box: np.ndarray) -> Rectangle:
    left, top, right, bottom = (float(side) for side in box)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _around(box: Rectangle):
    """Places for a label of a box, the best first."""
    left, top, right, bottom = box

    def places(width: float, height: float) -> list[tuple[float, float]]:
        above, below = (left, top - height), (left, bottom)
        return [above, (left, top), below, (right - width, top - height), (right - width, bottom)]

    return places


def _centred(x: float, y: float):
    def places(width: float, height: float) -> list[tuple[float, float]]:
        rows = [y - height / 2 + step * height for step in (0, 1, -1, 2, -2)]
        return [(x - width / 2, row) for row in rows]

    return places


def _draw_label(
    pen: ImageDraw.ImageDraw, text: str, colour: Colour, places, taken: list[Rectangle]
) -> None:
    """Write a text on a plate at the first place that no earlier label has taken."""
    width, height = pen.im.size
    font = _font(max(9, round(min(width, height) / 32)))
    left, top, right, bottom = font.getbbox(text)
    w, h = right + 6, bottom + 4
    rectangles = []
    for x, y in places(w, h):
        x, y = min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))
        rectangles.append((x, y, x + w, y + h))
    free = [r for r in rectangles if not any(_overlap(r, other) for other in taken)]
    plate = (free or rectangles)[0]
    if not free and taken:
        # No room: a label that hides one of a higher score says less than none.
        return
    taken.append(plate)
    pen.rectangle(plate, fill=tuple(colour))
    light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    pen.text((plate[0] + 3, plate[1] + 2), text, fill='black' if light else 'white', font=font)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
