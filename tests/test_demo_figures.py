"""Side-by-side figures: each prediction is drawn in its class's colour, in its own column."""

import json

import numpy as np
import pytest
from PIL import Image

from mirrorla_mm.demo.dataset import Recipe, draw_dataset, image_name
from mirrorla_mm.demo.figures import detection_figure, segmentation_figure
from mirrorla_mm.demo.scenes import CLASSES, PALETTE

STAR = CLASSES.index('star') + 1


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'demo'
    draw_dataset(root, Recipe(size=64, train=1, val=2))
    return root


def area_of(colour, figure, tolerance=8):
    """Pixels near a colour in each of the six columns of scenes; titles and legend cut off."""
    pixels = np.array(Image.open(figure).convert('RGB')).astype(int)
    height = len(pixels)
    near = (abs(pixels - colour).max(axis=2) <= tolerance)[int(0.2 * height) : int(0.85 * height)]
    return [int(part.sum()) for part in np.array_split(near, 6, axis=1)]


def test_predicted_boxes_are_drawn_where_the_score_is_high(data, tmp_path):
    boxes = [
        dict(image_id=0, category_id=STAR, bbox=[5, 20, 50, 30], score=0.9),
        dict(image_id=1, category_id=STAR, bbox=[5, 20, 50, 30], score=0.1),
    ]
    (tmp_path / 'boxes.json').write_text(json.dumps(boxes))
    (tmp_path / 'none.json').write_text('[]')
    areas = []
    for name in ('boxes', 'none'):
        detection_figure(data, tmp_path / f'{name}.json', range(2), tmp_path / f'{name}.png')
        areas.append(area_of(PALETTE[STAR], tmp_path / f'{name}.png'))
    gained = np.subtract(*areas)
    assert gained[2] > 500
    assert not gained[[0, 1, 3, 4, 5]].any()


def test_predicted_label_maps_are_laid_over_their_own_scene(data, tmp_path):
    for scene, label in ((0, 0), (1, STAR)):
        label_map = Image.fromarray(np.full((64, 64), label, np.uint8))
        label_map.save(tmp_path / image_name(scene).split('/')[1])
    segmentation_figure(data, tmp_path, range(2), tmp_path / 'maps.png')
    areas = area_of(PALETTE[STAR], tmp_path / 'maps.png', tolerance=60)
    assert areas[5] > 10000 > areas[2]
