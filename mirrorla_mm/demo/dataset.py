"""Write drawn scenes as a data set, in COCO's and in Cityscapes' layout at once.

::

    data/demo/
      demo.json                                              what was drawn: the stamp
      annotations/instances_{train,val}.json                 COCO instances, masks as RLE
      leftImg8bit/{train,val}/demo/00000_leftImg8bit.png     the images of both layouts
      gtFine/{train,val}/demo/00000_gtFine_labelTrainIds.png label maps
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from .scenes import CLASSES, Scene, draw_scene

SPLITS = ('train', 'val')
STAMP = 'demo.json'
VERSION = 3
"""Rises when the same recipe draws other files, so that sets of an older version are redrawn."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is drawn.

    Attributes:
        seed: non-negative; another seed draws other scenes.
        size: side of the square images in pixels.
        train, val: number of scenes in each split.
    """

    seed: int = 0
    size: int = 160
    train: int = 400
    val: int = 100
    version: int = VERSION


def image_name(index: int) -> str:
    """File name of an image relative to ``leftImg8bit/<split>``."""
    return f'demo/{index:05d}_leftImg8bit.png'


def label_name(index: int) -> str:
    """File name of a label map relative to ``gtFine/<split>``."""
    return f'demo/{index:05d}_gtFine_labelTrainIds.png'


def is_drawn(root: Path, recipe: Recipe) -> bool:
    """Whether ``root`` holds the complete data set of ``recipe``."""
    return _read_stamp(root) == asdict(recipe)


def draw_dataset(root: Path, recipe: Recipe, on_scene: Callable[[], object] = lambda: None) -> None:
    """Draw the data set of ``recipe`` into ``root``; return at once if it is there already.

    The set appears in one step when it is complete: it is drawn beside ``root`` and then renamed,
    so an interrupted call leaves no half-written set behind. A set that another recipe drew is
    replaced.

    Args:
        root: directory of the data set; its parents are created.
        recipe: what to draw.
        on_scene: called after each of the ``recipe.train + recipe.val`` scenes.

    Raises:
        FileExistsError: if ``root`` exists and holds anything else than a drawn data set.
    """
    if is_drawn(root, recipe):
        return
    _check_replaceable(root)
    partial = root.with_name(f'.{root.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    for split in SPLITS:
        _draw_split(partial, split, recipe, on_scene)
    (partial / STAMP).write_text(json.dumps(asdict(recipe)))
    remove_dataset(root)
    os.replace(partial, root)


def remove_dataset(root: Path) -> None:
    """Remove a drawn data set, if there is one.

    Raises:
        FileExistsError: if ``root`` exists and holds anything else than a drawn data set.
    """
    _check_replaceable(root)
    shutil.rmtree(root, ignore_errors=True)


def _check_replaceable(root: Path) -> None:
    if root.exists() and _read_stamp(root) is None and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f'{root} holds files that are not a drawn demo data set; choose another directory.'
        )


def _read_stamp(root: Path) -> dict | None:
    try:
        return json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return None


def _draw_split(root: Path, split: str, recipe: Recipe, on_scene: Callable[[], object]) -> None:
    colour, label_maps = root / 'leftImg8bit' / split, root / 'gtFine' / split
    images, annotations = [], []
    for directory in (colour, label_maps):
        (directory / 'demo').mkdir(parents=True)
    for index in range(getattr(recipe, split)):
        # A generator per scene: any scene can be drawn alone, whatever the size of the splits.
        rng = np.random.default_rng([recipe.seed, SPLITS.index(split), index])
        scene = draw_scene(rng, recipe.size)
        Image.fromarray(scene.image).save(colour / image_name(index), compress_level=1)
        Image.fromarray(scene.label_map()).save(label_maps / label_name(index))
        images.append(
            dict(id=index, file_name=image_name(index), width=recipe.size, height=recipe.size)
        )
        for annotation in scene_annotations(scene):
            annotations.append(dict(annotation, id=len(annotations) + 1, image_id=index))
        on_scene()
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    coco = dict(
        info=dict(description='MirrorLA demo scenes', **asdict(recipe)),
        images=images,
        annotations=annotations,
        categories=categories,
    )
    target = root / 'annotations' / f'instances_{split}.json'
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(coco))


def scene_annotations(scene: Scene) -> list[dict]:
    """COCO annotations of a scene's instances, without ``id`` and ``image_id``.

    Mask, area and box are those of the visible part; ``category_id`` counts from 1.
    """
    annotations = []
    for label, mask in zip(scene.labels, scene.masks(), strict=True):
        code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations.append(
            dict(
                category_id=label + 1,
                segmentation=dict(size=list(mask.shape), counts=code['counts'].decode()),
                area=int(mask.sum()),
                bbox=[float(edge) for edge in rle.toBbox(code)],
                iscrowd=0,
            )
        )
    return annotations
