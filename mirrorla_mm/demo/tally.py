"""How many drawn objects a detector finds, as somebody counts who looks at its figure."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask

MIN_SCORE = 0.3
"""Predicted boxes with a lower score are neither drawn nor counted."""
MIN_IOU = 0.5
"""A box that overlaps its object less is wrong."""

Boxes = dict[int, list[dict]]
"""Annotations in COCO's format by image (``bbox``, ``category_id``)."""


def read_boxes(data: Path, results: Path) -> tuple[Boxes, Boxes]:
    """Objects of the drawn validation set, and the boxes that are predicted with a high score.

    Args:
        data: directory that :func:`mirrorla_mm.demo.dataset.draw_dataset` filled.
        results: predictions in COCO's result format, as ``CocoMetric`` writes them.
    """
    truth: Boxes = defaultdict(list)
    boxes: Boxes = defaultdict(list)
    coco = json.loads((data / 'annotations' / 'instances_val.json').read_text())
    for annotation in coco['annotations']:
        truth[annotation['image_id']].append(annotation)
    for box in json.loads(results.read_text()):
        if box['score'] >= MIN_SCORE:
            boxes[box['image_id']].append(box)
    return truth, boxes


def count_found(truth: Sequence[dict], boxes: Sequence[dict]) -> int:
    """Count the objects of an image that have one box, and that box right.

    A box lies on the object that it overlaps most. An object is found if a single box lies on it,
    has its class and an intersection over union of at least :data:`MIN_IOU`. So a second box on an
    object spoils it, whatever its class and its score.
    """
    if not truth or not boxes:
        return 0
    corners = [np.array([each['bbox'] for each in some], float) for some in (boxes, truth)]
    overlaps = mask.iou(*corners, [0] * len(truth))  # (boxes, objects)
    lies_on = np.where(overlaps.any(axis=1), overlaps.argmax(axis=1), -1)
    found = 0
    for index, each in enumerate(truth):
        on_it = np.flatnonzero(lies_on == index)
        found += (
            len(on_it) == 1
            and boxes[on_it[0]]['category_id'] == each['category_id']
            and overlaps[on_it[0], index] >= MIN_IOU
        )
    return int(found)


def tally(data: Path, results: Path, scenes: Iterable[int]) -> str:
    """Say how many objects are found in some scenes and in the whole validation set."""
    truth, boxes = read_boxes(data, results)

    def found(images: Iterable[int]) -> str:
        pairs = [(truth[image], boxes[image]) for image in images]
        objects = sum(len(annotations) for annotations, _ in pairs)
        return f'{sum(count_found(*pair) for pair in pairs)} of {objects}'

    return f'right, with one box each: {found(list(truth))} objects, {found(scenes)} in the figure'
