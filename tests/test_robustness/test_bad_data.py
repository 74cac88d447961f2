"""Images and labels that would teach something false are refused or skipped, and reported."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import mirrorla_mm  # noqa: F401
from mirrorla_mm.engine.bad_data import TRANSFORM, BadDataHook, CheckedLoading, check_loading
from mirrorla_mm.engine.data import DataError
from tests.checked_datasets import checked, coco, coco_dataset
from tests.exif import turned
from tests.noise_segmentation import config, draw_images

GENERATOR = np.random.default_rng(0)
CUT_SHORT = ('jpg', 'png')


@pytest.fixture(autouse=True)
def mmseg_scope():
    import mmseg.datasets.transforms  # noqa: F401

    with DefaultScope.overwrite_default_scope('mmseg'), checked():
        yield


def write(path, array) -> str:
    cv2.imwrite(str(path), array)
    return str(path)


def image(shape=(40, 60, 3), dtype=np.uint8) -> np.ndarray:
    return GENERATOR.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def cut(path) -> str:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return str(path)


def load(path, **options):
    loader = CheckedLoading(dict(type='LoadImageFromFile'), **options)
    return loader(dict(img_path=str(path)))


def load_labels(path, size=(40, 60), backend_args=None, **options):
    load = dict(type='LoadAnnotations', backend_args=backend_args)
    loader = CheckedLoading(load, num_classes=3, **options)
    return loader(
        dict(
            img=np.zeros((*size, 3)),
            ori_shape=size,
            seg_map_path=str(path),
            img_path='a.jpg',
            reduce_zero_label=False,
            seg_fields=[],
            label_map=None,
        )
    )


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [
        ((40, 60), np.uint8),
        ((40, 60), np.uint16),
        ((40, 60, 3), np.uint16),
        ((40, 60, 4), np.uint8),
        ((40, 60, 4), np.uint16),
    ],
)
def test_grey_deep_and_transparent_images_become_8_bit_colour(tmp_path, shape, dtype):
    loaded = load(write(tmp_path / 'a.png', image(shape, dtype)))
    assert loaded['img'].shape == (40, 60, 3) and loaded['img'].dtype == np.uint8


@pytest.mark.parametrize('suffix', CUT_SHORT)
def test_image_cut_short_is_refused_by_name(tmp_path, suffix):
    write(tmp_path / f'a.{suffix}', image())
    with pytest.raises(DataError, match=rf'a\.{suffix} is cut short'):
        load(cut(tmp_path / f'a.{suffix}'))


def test_data_after_the_end_of_an_image_are_no_damage(tmp_path):
    write(tmp_path / 'a.jpg', image())
    (tmp_path / 'a.jpg').write_bytes((tmp_path / 'a.jpg').read_bytes() + b'maker note')
    assert load(tmp_path / 'a.jpg') is not None


@pytest.mark.parametrize('content', [b'', b'\xff', b'no image at all', b'\xff\xd8\xff\xd9'])
def test_files_that_are_no_image_are_refused_by_name(tmp_path, content):
    (tmp_path / 'a.jpg').write_bytes(content)
    with pytest.raises(DataError, match=r'a\.jpg'):
        load(tmp_path / 'a.jpg')


def test_missing_image_is_skipped_and_noted(tmp_path):
    log = tmp_path / 'bad.jsonl'
    assert load(tmp_path / 'none.jpg', policy='skip', log=str(log)) is None
    assert json.loads(log.read_text())['path'].endswith('none.jpg')


def test_what_pillow_refuses_to_unpack_is_refused_or_skipped_by_name(tmp_path):
    info = PngInfo()
    info.add_text('workflow', 'x' * (1 << 20) + 'y', zip=True)
    Image.new('RGB', (60, 40)).save(tmp_path / 'a.png', pnginfo=info)
    with pytest.raises(DataError, match=r'a\.png cannot be opened \(.*: save it anew'):
        load(tmp_path / 'a.png')
    assert load(tmp_path / 'a.png', policy='skip') is None


def test_an_error_while_a_file_is_judged_is_that_file_s(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.png', image())
    monkeypatch.setattr('mirrorla_mm.engine.bad_data.opening_problem', lambda path: 1 / 0)
    assert load(path, policy='skip') is None


def test_image_of_another_size_than_its_annotations_is_refused(tmp_path):
    path = write(tmp_path / 'a.png', image())
    loader = CheckedLoading(dict(type='LoadImageFromFile'))
    assert loader(dict(img_path=path, height=40, width=60)) is not None
    with pytest.raises(DataError, match='is 60 x 40 pixels, but its annotations are for 40 x 60'):
        loader(dict(img_path=path, height=60, width=40))


@pytest.mark.parametrize('backend', [None, {'backend': 'local'}])
def test_no_program_is_run_for_labels_in_postscript(tmp_path, monkeypatch, backend):
    ran = []
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *args: ran.append(args))
    (tmp_path / 'l.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n')
    with pytest.raises(DataError, match=r'l\.png is no image, but a program in PostScript'):
        load_labels(tmp_path / 'l.png', backend_args=backend)
    assert not ran


def test_labels_may_have_any_format_that_the_loader_reads(tmp_path, monkeypatch):
    Image.new('L', (60, 40), 2).save(tmp_path / 'l.tga')
    assert (load_labels(tmp_path / 'l.tga')['gt_seg_map'] == 2).all()
    monkeypatch.setattr('mirrorla_mm.engine.images.FORMATS', ('JPEG',))
    assert (load_labels(tmp_path / 'l.tga')['gt_seg_map'] == 2).all()


def test_labels_of_another_size_are_refused(tmp_path):
    path = write(tmp_path / 'l.png', np.zeros((40, 59), np.uint8))
    with pytest.raises(DataError, match=r'l\.png is 59 x 40 pixels, but its image is 60 x 40'):
        load_labels(path)


@pytest.mark.parametrize(('value', 'sound'), [(0, True), (2, True), (255, True), (3, False)])
def test_classes_that_the_model_does_not_have_are_refused(tmp_path, value, sound):
    path = write(tmp_path / 'l.png', np.full((40, 60), value, np.uint8))
    if sound:
        assert load_labels(path) is not None
    else:
        with pytest.raises(
            DataError, match=r'l\.png has the classes \[3\], but the model has 0 to 2'
        ):
            load_labels(path)


@pytest.mark.parametrize('suffix', CUT_SHORT)
def test_labels_cut_short_are_refused(tmp_path, suffix):
    write(tmp_path / f'l.{suffix}', image((40, 60)))
    with pytest.raises(DataError, match=rf'l\.{suffix}'):
        load_labels(cut(tmp_path / f'l.{suffix}'))


def test_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="'ignore'"):
        CheckedLoading(dict(type='LoadImageFromFile'), policy='ignore')


def damage(data) -> None:
    """Two of twelve samples: an image cut short and a label with a class that is not there."""
    cut(data / 'images' / '3.png')
    write(data / 'labels' / '5.png', np.full((48, 48), 7, np.uint8))


def run(data, work_dir, policy: str) -> Runner:
    cfg = config(data, work_dir, by_epoch=True, workers=1, seed=0)
    cfg.log_level = 'WARNING'
    check_loading(cfg, policy)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.slow
def test_skipping_trains_on_and_reports_how_many_and_which(tmp_path):
    draw_images(tmp_path / 'data')
    damage(tmp_path / 'data')
    runner = run(tmp_path / 'data', tmp_path / 'run', 'skip')
    assert runner.iter == 12
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert '2 samples were skipped as bad data' in log
    assert '3.png is cut short' in log and '5.png has the classes [7]' in log


@pytest.mark.slow
def test_refusing_stops_with_one_sentence_from_a_worker(tmp_path):
    draw_images(tmp_path / 'data')
    damage(tmp_path / 'data')
    with pytest.raises(DataError) as error:
        run(tmp_path / 'data', tmp_path / 'run', 'refuse')
    assert '\n' not in str(error.value) and '.png' in str(error.value)


@pytest.mark.slow
def test_sound_data_report_nothing(tmp_path):
    draw_images(tmp_path / 'data')
    run(tmp_path / 'data', tmp_path / 'run', 'skip')
    assert not (tmp_path / 'run' / 'bad_data.jsonl').exists()


def test_checking_the_loading_checks_the_data_sets_too(tmp_path):
    check_loading(Config(dict(work_dir=str(tmp_path), model={})))
    content = coco([([1, 1, 9, 9], 1), ([1, 1, 0, 9], 1), ([1, 1, 9, 9], 2)])
    dataset = coco_dataset(tmp_path, content, ('thing',))
    assert len(dataset.get_data_info(0)['instances']) == 1
    # A class that the config leaves out on purpose is not a fault of the data.
    assert dataset.dropped_boxes == [('a.jpg', 'without an area')]


def test_hooks_of_a_user_that_are_built_already_stay(tmp_path):
    hook = Hook()
    cfg = Config(dict(work_dir=str(tmp_path), model={}, custom_hooks=[hook]))
    check_loading(cfg)
    assert cfg.custom_hooks[0] is hook and len(cfg.custom_hooks) == 2


def runner_of(dataset, warnings: list, model=None) -> SimpleNamespace:
    """As much of a runner as the hook looks at."""
    return SimpleNamespace(
        train_dataloader=SimpleNamespace(dataset=dataset),
        logger=SimpleNamespace(warning=warnings.append),
        model=model or torch.nn.Module(),
    )


@pytest.mark.parametrize('classes', [1, 2, 3])
@pytest.mark.parametrize('cascade', [False, True])
def test_head_with_too_few_classes_is_refused_and_with_too_many_warned_about(classes, cascade):
    head, rpn = torch.nn.Module(), torch.nn.Module()
    head.num_classes, rpn.num_classes = classes, 1
    heads = torch.nn.ModuleList([head]) if cascade else head
    model = torch.nn.ModuleDict(dict(bbox_head=heads, rpn_head=rpn))
    warnings = []
    runner = runner_of(SimpleNamespace(metainfo=dict(classes=('a', 'b'))), warnings, model)
    name = 'bbox_head.0' if cascade else 'bbox_head'
    message = f'{name} has {classes} classes, but the data set has 2: a, b'
    if classes == 1:
        with pytest.raises(DataError, match=message):
            BadDataHook('unused.jsonl').before_train(runner)
    else:
        BadDataHook('unused.jsonl').before_train(runner)
        assert len(warnings) == (classes > 2)
        assert all(message in warning for warning in warnings)


def test_report_says_how_many_boxes_were_left_out_why_and_where():
    dropped = [('a.jpg', 'without an area'), ('b.jpg', 'without an area'), ('b.jpg', 'odd')]
    dataset = SimpleNamespace(ann_file='ann.json', dropped_boxes=dropped)
    warnings = []
    runner = runner_of(SimpleNamespace(dataset=dataset, metainfo={}), warnings)
    BadDataHook('unused.jsonl').before_train(runner)
    assert warnings == [
        'ann.json: annotations left out: 2 without an area, 1 odd; in a.jpg; b.jpg.'
    ]


@pytest.mark.parametrize('kept', (True, False))
def test_image_without_objects_has_no_boxes_or_is_left_out_as_the_config_says(tmp_path, kept):
    content = coco()
    content['images'].append(dict(id=2, file_name='empty.jpg', height=50, width=50))
    dataset = coco_dataset(tmp_path, content, filter_cfg=dict(filter_empty_gt=not kept))
    counts = [len(dataset.get_data_info(i)['instances']) for i in range(len(dataset))]
    assert counts == ([1, 0] if kept else [1])


def load_instances(mask, size=(40, 60), **options):
    loader = CheckedLoading(
        dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True), **options
    )
    instance = dict(bbox=[1, 1, 9, 9], bbox_label=0, ignore_flag=0, mask=mask)
    return loader(
        dict(
            img=np.zeros((*size, 3), np.uint8),
            img_path='a.jpg',
            ori_shape=size,
            img_shape=size,
            height=size[0],
            width=size[1],
            instances=[instance],
        )
    )


def test_instance_mask_of_another_size_is_refused_or_skipped(tmp_path):
    pytest.importorskip('mmdet')
    import mmdet.datasets  # noqa: F401
    from pycocotools import mask as coco_mask

    def encoded(height, width):
        found = coco_mask.encode(np.asfortranarray(np.ones((height, width), np.uint8)))
        return {**found, 'counts': found['counts'].decode()}  # as JSON has it

    assert load_instances(encoded(40, 60))['gt_masks'].masks.shape == (1, 40, 60)
    assert load_instances([[1, 1, 9, 1, 9, 9]])['gt_masks'].masks.any()
    with pytest.raises(DataError, match=r'a\.jpg'):
        load_instances(encoded(40, 59))
    log = tmp_path / 'bad.jsonl'
    assert load_instances(encoded(41, 60), policy='skip', log=str(log)) is None
    assert json.loads(log.read_text())['path'] == 'a.jpg'


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (None, 'has an annotation without a segmentation'),
        ([7], 'has a polygon that is no list of numbers'),
        ([[1, 1, 'a', 1, 9, 9]], 'has a polygon far outside'),
        ([[1, 1, 1e9, 1, 9, 9]], 'has a polygon far outside'),
        ([[1, 1, float('nan'), 1, 9, 9]], 'has a polygon far outside'),
        (dict(size=[40, 60], counts=[-5, 2405]), 'has a mask whose run lengths do not add up'),
        (dict(size=[40, 60], counts=[5, 5]), 'has a mask whose run lengths do not add up'),
        (dict(size=[40, 59], counts='x'), r'has a mask for \[40, 59\] instead of \[40, 60\]'),
        (dict(size=[40, 60]), 'has a mask without run lengths'),
    ],
)
def test_hostile_masks_are_refused_or_skipped_before_they_are_decoded(tmp_path, mask, message):
    with pytest.raises(DataError, match=rf'a\.jpg {message}'):
        load_instances(mask)
    assert load_instances(mask, policy='skip', log=str(tmp_path / 'bad.jsonl')) is None


@pytest.mark.parametrize('value', [769, 65535])
def test_label_of_more_than_8_bits_is_seen_before_it_wraps(tmp_path, value):
    labels = np.zeros((40, 60), np.uint16)
    labels[3, 3] = value
    path = write(tmp_path / 'l.png', labels)
    with pytest.raises(DataError, match=rf'l\.png has the classes \[{value}\]'):
        load_labels(path)
    labels[3, 3] = 2
    assert (load_labels(write(tmp_path / 'l.png', labels))['gt_seg_map'] == labels).all()


def test_image_that_exif_turns_has_annotations_of_the_size_that_is_seen(tmp_path):
    path = turned(tmp_path / 'a.jpg', 6)
    loader = CheckedLoading(dict(type='LoadImageFromFile'))
    assert loader(dict(img_path=path, height=60, width=40))['img'].shape == (60, 40, 3)
    with pytest.raises(DataError, match='is 40 x 60 pixels, but its annotations are for 60 x 40'):
        loader(dict(img_path=path, height=40, width=60))


@pytest.mark.parametrize(('value', 'size'), [(3, (60, 40)), (2, (60, 40)), (6, (50, 50))])
def test_image_that_exif_turns_without_a_trace_is_refused(tmp_path, value, size):
    path = turned(tmp_path / 'a.jpg', value, size)
    loader = CheckedLoading(dict(type='LoadImageFromFile'))
    for annotations in (dict(instances=[]), dict(seg_map_path='l.png')):
        with pytest.raises(DataError, match=rf'a\.jpg has the EXIF orientation {value}'):
            loader(dict(img_path=path, **annotations))
    assert loader(dict(img_path=path, gt_label=3)) is not None  # No place in the image to miss.
    stored = CheckedLoading(dict(type='LoadImageFromFile', color_type='color_ignore_orientation'))
    assert stored(dict(img_path=path, instances=[]))['img'].shape[:2] == size[::-1]


@pytest.mark.parametrize('kind', ['image', 'labels'])
def test_decompression_bomb_is_refused_or_skipped_by_its_header(tmp_path, monkeypatch, kind):
    path = write(tmp_path / 'a.png', np.zeros((40, 60), np.uint8))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    read = load if kind == 'image' else load_labels
    with pytest.raises(DataError, match=r'a\.png has 0 million pixels, and no more than 0'):
        read(path)
    assert read(path, policy='skip', log=str(tmp_path / 'bad.jsonl')) is None


def test_torn_and_earlier_entries_of_the_log_are_not_reported(tmp_path):
    log = tmp_path / 'bad_data.jsonl'
    log.write_bytes(b'{"path": "old.jpg", "problem": "is old"}\n{"path": "torn')
    warnings = []
    runner = runner_of(SimpleNamespace(metainfo={}), warnings)
    hook = BadDataHook(str(log))
    hook.before_train(runner)
    hook.after_train(runner)
    assert warnings == []
    with log.open('ab') as file:
        file.write(b'{"path": "new.jpg", "problem": "is new"}\n\xff\xfe\n[]\n{"path": ')
    hook.after_train(runner)
    assert len(warnings) == 1 and warnings[0].startswith('1 samples were skipped')
    assert 'new.jpg is new' in warnings[0] and 'old.jpg' not in warnings[0]


def test_empty_label_file_is_refused_and_unlabelled_image_is_sound(tmp_path):
    (tmp_path / 'l.png').touch()
    with pytest.raises(DataError, match=r'l\.png'):
        load_labels(tmp_path / 'l.png')
    path = write(tmp_path / 'l.png', np.full((40, 60), 255, np.uint8))
    assert (load_labels(path)['gt_seg_map'] == 255).all()


def test_every_loader_of_training_and_validation_is_checked_and_those_of_testing_are_bare(tmp_path):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations'),
        dict(type='Pad'),
    ]
    nested = dict(dataset=dict(dataset=dict(pipeline=pipeline), pipeline=[dict(type='Mosaic')]))
    cfg = Config(
        dict(
            work_dir=str(tmp_path),
            train_dataloader=nested,
            custom_hooks=[dict(type='PipelineSwitchHook', switch_pipeline=pipeline)],
            model={},
            val_dataloader=dict(dataset=dict(pipeline=pipeline)),
            test_dataloader=dict(dataset=dict(pipeline=pipeline)),
        )
    )
    for policy in ('refuse', 'skip'):  # The second call replaces what the first one set.
        check_loading(cfg, policy)
    switch, report = cfg.custom_hooks
    for inner in (cfg.train_dataloader.dataset.dataset.pipeline, switch.switch_pipeline):
        assert [t.type for t in inner] == [TRANSFORM, TRANSFORM, 'Pad']
        assert [t.policy for t in inner[:2]] == ['skip', 'skip']
    assert 'policy' not in cfg.val_dataloader.dataset.pipeline[0]
    assert cfg.test_dataloader.dataset.pipeline[0].type == 'LoadImageFromFile'
    assert report.type == 'mirrorla_mm.BadDataHook'
