"""The drawn data set: its labels agree with each other, and it is complete or absent."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mirrorla_mm.demo import dataset
from mirrorla_mm.demo.dataset import Recipe, draw_dataset, image_name, is_drawn, label_name
from mirrorla_mm.demo.scenes import CLASSES, MIN_VISIBLE, PALETTE, draw_scene

SMALL = Recipe(seed=3, size=64, train=16, val=12)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'demo'
    draw_dataset(root, SMALL)
    return root


def scenes(count=40, size=96):
    return [draw_scene(np.random.default_rng([7, i]), size) for i in range(count)]


def test_same_seed_draws_identical_files(drawn, tmp_path):
    draw_dataset(tmp_path / 'again', SMALL)
    assert files_of(tmp_path / 'again') == files_of(drawn)


def test_another_seed_draws_other_images(drawn, tmp_path):
    draw_dataset(tmp_path / 'other', Recipe(seed=4, size=64, train=4, val=4))
    for split in ('train', 'val'):
        for index in range(4):
            name = f'leftImg8bit/{split}/{image_name(index)}'
            assert (tmp_path / 'other' / name).read_bytes() != (drawn / name).read_bytes()


def test_no_image_is_drawn_twice(drawn):
    images = [p.read_bytes() for p in (drawn / 'leftImg8bit').rglob('*.png')]
    assert len(set(images)) == len(images) == SMALL.train + SMALL.val


@pytest.mark.parametrize('split', ['train', 'val'])
def test_coco_masks_boxes_and_label_maps_agree(drawn, split):
    coco = COCO(str(drawn / 'annotations' / f'instances_{split}.json'))
    assert [coco.cats[i + 1]['name'] for i in range(len(CLASSES))] == list(CLASSES)
    assert len(coco.imgs) == getattr(SMALL, split)
    for index, image in coco.imgs.items():
        stored = Image.open(drawn / 'leftImg8bit' / split / image['file_name'])
        assert stored.size == (image['width'], image['height']) == (64, 64)
        label_map = np.array(Image.open(drawn / 'gtFine' / split / label_name(index)))
        expected = np.zeros_like(label_map)
        for annotation in coco.imgToAnns[index]:
            mask = coco.annToMask(annotation).astype(bool)
            assert not expected[mask].any(), 'visible masks overlap'
            expected[mask] = annotation['category_id']
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert (x, x + width) == (columns.min(), columns.max() + 1)
            assert (y, y + height) == (rows.min(), rows.max() + 1)
            assert annotation['area'] == mask.sum()
        np.testing.assert_array_equal(label_map, expected)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_every_class_is_in_every_split(drawn, split):
    coco = json.loads((drawn / 'annotations' / f'instances_{split}.json').read_text())
    assert set(Counter(a['category_id'] for a in coco['annotations'])) == {1, 2, 3, 4, 5}


def test_scenes_occlude_but_never_hide():
    """A mask touches another instance somewhere, and none is a sliver."""
    areas, touching = [], 0
    for scene in scenes():
        assert 1 <= len(scene.labels) <= 6
        sizes = scene.masks().sum(axis=(1, 2))
        areas.extend(sizes)
        left, right = scene.instances[:, :-1], scene.instances[:, 1:]
        touching += bool(np.any((left != right) & (left > 0) & (right > 0)))
    smallest = MIN_VISIBLE * 0.4 * (0.10 * 96) ** 2
    assert min(areas) > smallest
    assert max(areas) > 10 * min(areas)
    assert touching > 10


def test_palette_names_every_class_and_background():
    assert len(PALETTE) == len(CLASSES) + 1 == len(set(PALETTE))


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match='at least 64 pixels, got 20'):
        draw_scene(np.random.default_rng(0), 20)


def test_killed_drawing_leaves_no_data_set_and_the_next_call_completes_it(drawn, tmp_path):
    root = tmp_path / 'demo'
    drawn_scenes = []

    def kill_after_five():
        drawn_scenes.append(None)
        if len(drawn_scenes) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_dataset(root, SMALL, on_scene=kill_after_five)
    assert not root.exists()
    assert not is_drawn(root, SMALL)
    draw_dataset(root, SMALL)
    assert is_drawn(root, SMALL)
    assert files_of(root) == files_of(drawn)
    assert [p.name for p in tmp_path.iterdir()] == ['demo']


def test_a_complete_set_is_reused_and_another_recipe_replaces_it(tmp_path, monkeypatch):
    root, calls = tmp_path / 'demo', []
    first, second = Recipe(0, 64, 2, 1), Recipe(1, 64, 1, 1)
    draw_dataset(root, first, on_scene=lambda: calls.append(1))
    draw_dataset(root, first, on_scene=lambda: calls.append(1))
    assert len(calls) == 3
    draw_dataset(root, second)
    assert is_drawn(root, second)
    assert not is_drawn(root, first)
    assert len(list((root / 'leftImg8bit' / 'train' / 'demo').iterdir())) == 1
    monkeypatch.setattr(dataset, 'VERSION', dataset.VERSION + 1)
    assert not is_drawn(root, Recipe(1, 64, 1, 1, version=dataset.VERSION))


def test_files_of_others_are_never_replaced(tmp_path):
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo' / 'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='choose another directory'):
        draw_dataset(tmp_path / 'demo', SMALL)
    assert (tmp_path / 'demo' / 'thesis.tex').read_text() == 'precious'
