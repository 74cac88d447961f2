"""A model as a function of an image, and what it refuses."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from pycocotools import mask

from mirrorla_mm.apis import Inferencer
from mirrorla_mm.apis.inference import _classes
from mirrorla_mm.engine import CheckpointError
from mirrorla_mm.engine.data import DataError
from mirrorla_mm.engine.errors import UserError

from .conftest import DETECTOR, MASKS, SEGMENTOR, save_weights, toy

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def test_detector_gives_boxes_within_the_image_by_falling_score(inferencer):
    found = inferencer(DETECTOR)(IMAGE)
    assert found.label_map is None and found.masks is None
    assert len(found.names) == len(found.scores) == len(found.boxes) > 0
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [80, 60, 80, 60]).all()
    assert set(found.names) <= {'disc', 'square', 'triangle', 'star', 'ring'}


def test_only_instances_above_a_score_are_kept(inferencer):
    found = inferencer(DETECTOR)(IMAGE)
    cut = float(found.scores[3])
    assert (found.above(cut).scores >= cut).all() and len(found.above(cut).labels) >= 4
    assert found.above(1.1).names == [] and found.above(1.1).summary() == 'nothing'


def test_masks_have_the_images_size_and_survive_json(inferencer):
    found = inferencer(MASKS)(IMAGE)
    assert found.masks.shape == (len(found.labels), 60, 80) and found.masks.dtype == bool
    coded = found.to_dict()['masks']
    assert len(coded) == len(found.labels) > 0
    assert all((mask.decode(code) == own).all() for code, own in zip(coded, found.masks))


def test_segmentor_gives_a_class_to_every_pixel(inferencer):
    found = inferencer(SEGMENTOR)(IMAGE)
    assert found.label_map.shape == (60, 80) and found.label_map.dtype == np.uint8
    assert sum(found.shares.values()) == pytest.approx(1)
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR, MASKS])
@pytest.mark.parametrize('shape', [(1, 1), (1, 4096), (4096, 1)])
def test_tiny_and_thin_images_are_predicted_or_refused_in_one_sentence(inferencer, config, shape):
    try:
        found = inferencer(config)(np.zeros((*shape, 3), np.uint8))
    except DataError as error:
        assert f'{shape[1]} x {shape[0]} pixels' in str(error) and '\n' not in str(error)
    else:
        assert found.size == shape


def test_classes_come_from_the_checkpoint_before_the_config(tmp_path):
    cfg = toy(DETECTOR)
    names = ('a', 'b', 'c', 'd', 'e')
    file = save_weights(cfg, tmp_path / 'x.pth', dataset_meta=dict(classes=names, palette='random'))
    model = Inferencer(cfg, file, 'cpu')
    assert model.classes == names
    assert len(set(model.palette)) == 5


def test_a_checkpoint_names_no_file_of_classes(tmp_path):
    (tmp_path / 'secret.txt').write_text('private')
    cfg, name = toy(SEGMENTOR), str(tmp_path / 'secret.txt')
    file = save_weights(cfg, tmp_path / 'x.pth', dataset_meta=dict(classes=name))
    assert Inferencer(cfg, file, 'cpu').classes[0] == name


@pytest.mark.parametrize(
    'meta',
    [None, [], {'dataset_meta': [1]}, {'dataset_meta': {1: 2}}, {'dataset_meta': {'classes': 5}}]
    + [
        {'dataset_meta': {'palette': odd}}
        for odd in ([[1], [2]], [[1, 2, 3]], 'odd', 7, np.zeros((2, 3)), [[-1, 0, 0]] * 2)
    ],
)
def test_odd_notes_of_a_checkpoint_leave_classes_and_colours_to_the_config(meta):
    model = torch.nn.Module()
    model.num_classes = 2
    colours = [(1.0, 2.0, 3.0), (4, 5, 6)]
    dataset = dict(type='BaseDataset', metainfo=dict(classes=('a', 'b'), palette=colours))
    assert _classes(dict(meta=meta), dataset, model) == (('a', 'b'), tuple(colours))


def test_classes_that_nothing_names_are_those_of_the_data_set(tmp_path):
    cfg = toy(DETECTOR)
    del cfg.test_dataloader.dataset['metainfo']
    cfg.model.bbox_head.num_classes = 80
    model = Inferencer(cfg, save_weights(cfg, tmp_path / 'x.pth'), 'cpu')
    assert model.classes[::79] == ('person', 'toothbrush')
    assert model.palette[0] == (220, 20, 60)  # of mmdet's CocoDataset


def test_classes_may_be_one_name_or_a_file_of_names(tmp_path):
    cfg = toy(SEGMENTOR)
    cfg.model.decode_head.update(num_classes=1, out_channels=1)
    file = save_weights(cfg, tmp_path / 'x.pth')
    cfg.test_dataloader.dataset.metainfo = dict(classes='crack')
    model = Inferencer(cfg, file, 'cpu')
    assert model.classes == ('crack', 'class 1')  # what lies below and above the threshold
    assert set(model(np.zeros((64, 64, 3), np.uint8)).shares) <= set(model.classes)
    (tmp_path / 'names.txt').write_text('sound\ncrack\n')
    cfg.test_dataloader.dataset.metainfo = dict(classes=str(tmp_path / 'names.txt'))
    assert Inferencer(cfg, file, 'cpu').classes == ('sound', 'crack')


def test_a_preprocessor_beside_the_model_is_the_model_s(tmp_path):
    cfg = toy(SEGMENTOR)
    image = np.full((64, 64, 3), 99, np.uint8)
    file = save_weights(cfg, tmp_path / 'x.pth')
    expected = Inferencer(cfg, file, 'cpu')(image).label_map
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    model = Inferencer(cfg, file, 'cpu')
    assert np.array_equal(model(image).label_map, expected)
    assert type(model.model.data_preprocessor).__name__ == 'SegDataPreProcessor'


def test_checkpoint_of_another_model_is_refused(tmp_path):
    file = save_weights(toy(SEGMENTOR), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth is of another model'):
        Inferencer(toy(DETECTOR), file, 'cpu')


def test_the_config_that_was_given_stays_as_it_is(tmp_path):
    cfg = toy(DETECTOR)
    file = save_weights(cfg, tmp_path / 'x.pth')
    before = cfg.to_dict()
    model = Inferencer(cfg, file, 'cpu', {'model.test_cfg.score_thr': 0.9})
    assert model.cfg.model.test_cfg.score_thr == 0.9 and cfg.to_dict() == before


def test_config_of_a_package_is_found_by_its_name(tmp_path):
    torch.save(dict(state_dict={'a': torch.ones(1)}), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='is of another model'):
        Inferencer('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', tmp_path / 'x.pth', 'cpu')


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [(dict(default_scope='mmpretrain'), 'mmpretrain'), (dict(default_scope='mmdet'), 'default')],
)
def test_other_configs_are_refused(tmp_path, cfg, message):
    (tmp_path / 'x.pth').touch()
    with pytest.raises(UserError, match=message):
        Inferencer(Config(cfg), tmp_path / 'x.pth')


def test_missing_checkpoint_and_config_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        Inferencer(toy(DETECTOR), tmp_path / 'none.pth')
    (tmp_path / 'x.pth').touch()
    with pytest.raises(UserError, match=r'none\.py does not exist'):
        Inferencer(tmp_path / 'none.py', tmp_path / 'x.pth')
