"""Single annotations in COCO's format that cannot be trained on, each described in a few words."""

from __future__ import annotations

import math
from typing import Any

__all__ = ['annotation_problem', 'segmentation_problem']


def annotation_problem(annotation: dict, image: dict, categories: dict) -> str | None:
    """Why an annotation cannot be trained on; None if it can.

    Args:
        annotation (dict): COCO's.
        image (dict): COCO's, of the image that it is on.
        categories (dict): Of the file, by id.
    """
    box = annotation['bbox']
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return 'whose box is not four numbers'
    left, top, width, height = box
    if width < 1 or height < 1 or not _is_finite(annotation['area']) or annotation['area'] <= 0:
        return 'without an area'
    inside = left < image['width'] and top < image['height'] and left + width > 0
    if not inside or top + height <= 0:
        return 'outside their image'
    if annotation['category_id'] not in categories:
        return 'of a category that the file does not define'
    return None


def segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """Why a polygon or run-length mask cannot be decoded safely; None if it can.

    Args:
        segmentation (Any): COCO's: polygons, or a dict of ``size`` and ``counts``.
        height (int): Of the image.
        width (int): Of the image.
    """
    if isinstance(segmentation, dict):
        return _mask_problem(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        return 'has an annotation without a segmentation'
    # What lies further off than a side of the image is a mistake, and pycocotools allocates by it.
    far = 2 * max(height, width)
    for polygon in segmentation:
        # One of less than three points is harmless: mmdet passes over it.
        if not isinstance(polygon, list):
            return 'has a polygon that is no list of numbers'
        if not all(_is_finite(n) and -far <= n <= far for n in polygon):
            return 'has a polygon far outside of the image'
    return None


def _mask_problem(mask: dict, height: int, width: int) -> str | None:
    if list(mask.get('size') or ()) != [height, width]:
        return f'has a mask for {mask.get("size")} instead of [{height}, {width}] pixels'
    counts = mask.get('counts')
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != height * width:
            return 'has a mask whose run lengths do not add up to the image'
    elif not isinstance(counts, (str, bytes)):
        return 'has a mask without run lengths'
    return None


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)
