"""COCO files for tests, and data set classes that a test leaves as it found them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdet.datasets import BaseDetDataset, CocoDataset
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

from mirrorla_mm.engine.dataset_checks import check_datasets

CHANGED = (
    (BaseDataset, 'prepare_data'),
    (BaseDataset, 'full_init'),
    (BaseDetDataset, 'full_init'),
    (CocoDataset, 'parse_data_info'),
    (CocoDataset, 'COCOAPI'),
)


@contextmanager
def checked() -> Iterator[None]:
    """Check data sets within, and no longer afterwards."""
    before = [cls.__dict__[name] for cls, name in CHANGED]
    check_datasets()
    try:
        yield
    finally:
        for (cls, name), value in zip(CHANGED, before):
            setattr(cls, name, value)


def coco(annotations=(([1, 1, 9, 9], 1),), names=('thing', 'other'), size=(50, 50)) -> dict:
    """A file of one image, its annotations given by box and category."""
    return dict(
        images=[dict(id=1, file_name='a.jpg', width=size[0], height=size[1])],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
        annotations=[
            dict(id=i, image_id=1, iscrowd=0, area=81, bbox=box, category_id=category)
            for i, (box, category) in enumerate(annotations)
        ],
    )


def coco_dataset(folder: Path, content, classes=('thing', 'other'), **options) -> CocoDataset:
    """Write a COCO file, or what a test has instead, beside its image, and build its data set."""
    if not (folder / 'a.jpg').exists():
        Image.new('RGB', (50, 50)).save(folder / 'a.jpg')
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / 'ann.json').write_text(text)
    return DATASETS.build(
        dict(
            type='mmdet.CocoDataset',
            ann_file=str(folder / 'ann.json'),
            data_prefix=dict(img=str(folder)),
            metainfo=dict(classes=classes),
            **{'pipeline': [], **options},
        )
    )
