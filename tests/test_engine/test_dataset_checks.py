"""Mistakes in a user's data set: each is one sentence that names the file, before training."""

import math
from pathlib import Path

import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mirrorla_mm.engine.data import DataError
from tests.checked_datasets import checked, coco, coco_dataset


@pytest.fixture(autouse=True)
def _checked():
    with checked():
        yield


def refused(match: str):
    return pytest.raises(DataError, match=rf'(?s)^(?!.*\n).*{match}')


def test_classes_in_another_order_are_refused_with_both_lists(tmp_path):
    with refused(
        r"ann\.json lists the classes in another order .* the file has 'thing', 'other'; "
        r"the config has 'other', 'thing'"
    ):
        coco_dataset(tmp_path, coco(), classes=('other', 'thing'))


def test_class_that_is_spelled_otherwise_is_refused_with_both_lists(tmp_path):
    with refused(
        r"ann\.json has no category 'Thing': the file has 'thing', 'other'; .* are 'Thing', 'other'"
    ):
        coco_dataset(tmp_path, coco(), classes=('Thing', 'other'))


def test_some_of_the_files_classes_in_its_order_are_sound(tmp_path):
    content = coco([([1, 1, 9, 9], 1), ([1, 1, 9, 9], 3)], names=('a', 'b', 'c'))
    dataset = coco_dataset(tmp_path, content, classes=('a', 'c'))
    assert [i['bbox_label'] for i in dataset.get_data_info(0)['instances']] == [0, 1]


def without(key: str, entries: str | None = None) -> dict:
    content = coco()
    del (content[entries][0] if entries else content)[key]
    return content


def odd(entries: str, key: str, value) -> dict:
    content = coco()
    content[entries][0][key] = value
    return content


def twice(entries: str) -> dict:
    content = coco()
    content[entries] = content[entries] * 2
    return content


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', r'ann\.json is empty'),
        ('{"images": [', r'ann\.json is no JSON: it is cut short, in line 1'),
        (
            '{"images": [1 2]}',
            r"is no JSON: Expecting ',' delimiter, in line 1, column 15",
        ),
        ('[]', r'ann\.json holds a list'),
        ('{"a": 1}', r"ann\.json has no list of 'images', 'categories', .*: it has 'a'"),
        (without('categories'), r"has no list of 'categories'"),
        (without('width', 'images'), r"has no 'width' in entry 0 of 'images'"),
        (without('bbox', 'annotations'), r"has no 'bbox' in entry 0 of 'annotations'"),
        (without('image_id', 'annotations'), r"has no 'image_id' in entry 0"),
        (without('area', 'annotations'), r"has no 'area' in entry 0"),
        (odd('images', 'id', [1]), r"has an odd 'id' in entry 0 of 'images': \[1\]"),
        (odd('images', 'width', '50'), r"has an odd 'width' in entry 0 of 'images': '50'"),
        (odd('images', 'file_name', None), r"has an odd 'file_name' in entry 0"),
        (odd('annotations', 'area', None), r"has an odd 'area' in entry 0"),
        (odd('categories', 'name', {}), r"has an odd 'name' in entry 0"),
        ('[' * 100_000, r'ann\.json is nested deeper'),
        (twice('images'), r"gives the id 1 to 2 entries of 'images'"),
        (twice('annotations'), r"gives the id 0 to 2 entries of 'annotations'"),
        (coco(names=('thing', 'thing')), r"has 2 categories named 'thing'"),
    ],
)
def test_file_that_is_no_sound_coco_json_is_refused(tmp_path, content, message):
    with refused(message):
        coco_dataset(tmp_path, content)


def test_binary_file_is_refused(tmp_path):
    coco_dataset(tmp_path, coco())
    (tmp_path / 'ann.json').write_bytes(b'\xff\xfe\x00')
    with refused(r'ann\.json is no JSON file, but binary'):
        DATASETS.build(dict(type='mmdet.CocoDataset', ann_file=str(tmp_path / 'ann.json')))


def test_annotations_of_other_images_are_refused(tmp_path):
    content = coco()
    content['annotations'][0]['image_id'] = 7
    with refused(r'belongs to other images: none of its 1 annotations .* image_id 7'):
        coco_dataset(tmp_path, content)


def test_annotations_of_some_unlisted_images_are_warned_about(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mirrorla_mm.engine.coco.print_log', lambda text, *_, **__: said.append(text)
    )
    content = coco([([1, 1, 9, 9], 1)] * 3)
    content['annotations'][0]['image_id'] = 7
    dataset = coco_dataset(tmp_path, content)
    assert len(dataset.get_data_info(0)['instances']) == 2
    assert len(said) == 1 and 'ann.json' in said[0] and '1 of' in said[0]


def test_images_that_are_not_there_are_refused_with_what_is(tmp_path):
    content = coco()
    content['images'][0]['file_name'] = 'photo_001.jpg'
    with refused(r'names files that are not there, such as .*photo_001\.jpg .* such as a\.jpg'):
        coco_dataset(tmp_path, content)


def test_file_without_a_usable_object_is_refused(tmp_path):
    with refused(r'finds no image in .*ann\.json that filter_cfg \(filter_empty_gt=True\) leaves'):
        coco_dataset(tmp_path, coco([]), filter_cfg=dict(filter_empty_gt=True))


def test_test_set_without_annotations_is_sound(tmp_path):
    assert len(coco_dataset(tmp_path, without('annotations'), test_mode=True)) == 1


def test_annotations_left_out_are_counted_by_reason(tmp_path):
    boxes = [
        [1, 1, 9, 9],
        [1, 1, 0, 9],
        [math.nan, 1, 9, 9],
        [1, 1, 9],
        [60, 60, 9, 9],
        [-20, 1, 9, 9],
    ]
    dataset = coco_dataset(tmp_path, coco([*((box, 1) for box in boxes), ([1, 1, 9, 9], 8)]))
    assert len(dataset.get_data_info(0)['instances']) == 1
    assert [problem for _, problem in dataset.dropped_boxes] == [
        'without an area',
        'whose box is not four numbers',
        'whose box is not four numbers',
        'outside their image',
        'outside their image',
        'of a category that the file does not define',
    ]


def seg_dataset(folder, **options) -> BaseSegDataset:
    folders = dict(img_path='images', seg_map_path='labels')
    defaults = dict(img_suffix='.jpg', data_prefix=folders, metainfo=dict(classes=('a', 'b')))
    return BaseSegDataset(data_root=str(folder), **{**defaults, **options})


def test_folder_of_other_images_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / 'images').mkdir()
    with refused(r"finds no image in .*images: no name there ends in '\.jpg', it is empty"):
        seg_dataset(tmp_path)
    Image.new('RGB', (9, 9)).save(tmp_path / 'images' / 'x.png')
    with refused(r"no name there ends in '\.jpg', it holds such as x\.png"):
        seg_dataset(tmp_path)


def test_labels_that_are_not_there_are_refused(tmp_path):
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    Image.new('RGB', (9, 9)).save(tmp_path / 'images' / 'x.jpg')
    Image.new('L', (9, 9)).save(tmp_path / 'labels' / 'x_mask.png')
    with refused(r'such as .*labels/x\.png .* such as x_mask\.png'):
        seg_dataset(tmp_path)
    assert len(seg_dataset(tmp_path, seg_map_suffix='_mask.png')) == 1
    assert len(seg_dataset(tmp_path, test_mode=True)) == 1


def test_images_that_are_left_out_by_their_name_are_told(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mirrorla_mm.engine.dataset_checks.print_log', lambda text, *_, **__: said.append(text)
    )
    images, labels = tmp_path / 'images', tmp_path / 'images' / 'labels'
    labels.mkdir(parents=True)
    Image.new('RGB', (9, 9)).save(images / 'a.jpg')
    Image.new('L', (9, 9)).save(labels / 'a.png')
    options = dict(data_prefix=dict(img_path='images', seg_map_path='images/labels'))
    (images / 'notes.txt').touch()
    assert len(seg_dataset(tmp_path, **options)) == 1 and not said
    for name in ('b.JPG', 'c.png'):
        Image.new('RGB', (9, 9)).save(images / name)
    assert len(seg_dataset(tmp_path, **options)) == 1
    assert len(said) == 1
    assert f'leaves out 1 images of {images}, such as b.JPG: only' in said[0]
    Image.new('L', (9, 9)).save(labels / 'c.png')
    (images / 'd').mkdir()
    Image.new('RGB', (9, 9)).save(images / 'd' / 'E.JPG')
    (images / 'b.JPG').unlink()
    seg_dataset(tmp_path, **options)
    assert f'leaves out 2 images of {images}, such as c.png: only' in said[1]
    (images / 'c.png').unlink()
    seg_dataset(tmp_path, **options)
    assert f'leaves out 1 images of {images}, such as d/E.JPG: only' in said[2]


@pytest.mark.parametrize(
    ('files', 'options'),
    [
        (['a.jpg', 'a.png'], dict(data_prefix=dict(img_path=''))),
        (['a.jpg', 'a.png', 'a_colour.png'], dict(data_prefix=dict(img_path='', seg_map_path=''))),
        (
            [f'a_{kind}.png' for kind in ('image', 'label', 'colour')],
            dict(
                data_prefix=dict(img_path='', seg_map_path=''),
                img_suffix='_image.png',
                seg_map_suffix='_label.png',
            ),
        ),
        (['images/a.jpg', 'images/a_preview.png', 'images/a.webp', 'labels/a.png'], {}),
        (
            ['a.jpg', 'labels/a.png', 'coloured/a.png'],
            dict(data_prefix=dict(img_path='', seg_map_path='labels')),
        ),
    ],
)
def test_files_beside_the_images_of_a_sound_folder_are_not_told(
    tmp_path, monkeypatch, files, options
):
    said = []
    monkeypatch.setattr(
        'mirrorla_mm.engine.dataset_checks.print_log', lambda text, *_, **__: said.append(text)
    )
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('L', (9, 9)).save(tmp_path / name)
    assert len(seg_dataset(tmp_path, **options)) == 1
    assert said == []


class Images(BaseDataset):
    """Image names by their ends, one or several, and no labels."""

    def __init__(self, folder, img_suffix):
        self.img_suffix = img_suffix
        super().__init__(data_prefix=dict(img_path=str(folder)))

    def load_data_list(self):
        ends = tuple(self.img_suffix) if isinstance(self.img_suffix, list) else self.img_suffix
        files = Path(self.data_prefix['img_path']).iterdir()
        return [dict(img_path=str(file)) for file in files if file.name.endswith(ends)]


def test_data_sets_without_labels_or_with_several_suffixes_are_sound(tmp_path):
    for name in ('a.jpg', 'b.png', 'c.bmp'):
        Image.new('L', (9, 9)).save(tmp_path / name)
    assert len(Images(tmp_path, '.jpg')) == 1
    assert len(Images(tmp_path, ['.jpg', '.png'])) == 2


def test_image_that_breaks_a_pipeline_is_named(tmp_path):
    pipeline = [dict(type='LoadImageFromFile')]
    dataset = coco_dataset(tmp_path, coco(), pipeline=pipeline, test_mode=True)
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    with refused(r'a\.jpg is no readable image'):
        dataset[0]


def test_checking_twice_checks_once(tmp_path):
    with checked():
        dataset = coco_dataset(tmp_path, coco([([1, 1, 0, 9], 1)]))
    assert len(dataset.dropped_boxes) == 1
