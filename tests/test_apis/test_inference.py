"""Pictures, folders and videos through a detector and a segmentor with random weights."""

import json
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.datasets import ADE20KDataset

from mirrorla_mm.apis import build_inferencer, predict

CONFIGS = Path(__file__).parents[2] / 'configs'
DETECTOR = 'retinanet/retinanet_mirrorla-t-linear_fpn_1x_coco.py'
SEGMENTOR = 'efficientvit_head/mirrorla-t-linear_efficientvit-head_4xb4-160k_ade20k-512x512.py'


def build(name: str, folder: Path):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone.arch = dict(
        embed_dims=(64, 128, 256, 512), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)
    )
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (96, 96)
    init_default_scope(cfg.default_scope)
    dataset = (CocoDataset if cfg.default_scope == 'mmdet' else ADE20KDataset).METAINFO
    meta = dict(dataset_meta={key: dataset[key] for key in ('classes', 'palette')})
    weights = dict(meta=meta, state_dict=MODELS.build(cfg.model).state_dict())
    torch.save(weights, folder / 'weights.pth')
    return build_inferencer(cfg, folder / 'weights.pth', 'cpu')


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return build(DETECTOR, tmp_path_factory.mktemp('detector'))


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    return build(SEGMENTOR, tmp_path_factory.mktemp('segmentor'))


@pytest.fixture
def folder(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 80, 3), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        mmcv.imwrite(picture, str(tmp_path / 'in' / f'{i}.jpg'))
    (tmp_path / 'in' / 'notes.txt').write_text('not a picture')
    return tmp_path / 'in'


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_folder_gives_pictures_of_its_size_and_json(kind, folder, tmp_path, request):
    results = predict(request.getfixturevalue(kind), folder, tmp_path / 'out', score_thr=0.0)
    assert json.loads((tmp_path / 'out' / 'predictions.json').read_text()) == results
    assert [result['picture'] for result in results] == ['0.jpg', '1.jpg']
    for i in range(2):
        assert mmcv.imread(str(tmp_path / 'out' / f'{i}.png')).shape == (64, 80, 3)
    if kind == 'detector':
        assert results[0]['names']
        assert len(results[0]['names']) == len(results[0]['bboxes']) == len(results[0]['scores'])
    else:
        assert sum(results[0]['shares'].values()) == pytest.approx(1.0)


def test_boxes_below_the_threshold_are_left_out(detector, folder, tmp_path):
    results = predict(detector, folder / '0.jpg', tmp_path / 'out', score_thr=1.1)
    assert results[0]['bboxes'] == results[0]['names'] == []


def test_video_gives_a_video(segmentor, tmp_path):
    source = str(tmp_path / 'clip.avi')
    writer = cv2.VideoWriter(source, cv2.VideoWriter_fourcc(*'MJPG'), 5, (80, 64))
    for value in (0, 100, 200):
        writer.write(np.full((64, 80, 3), value, np.uint8))
    writer.release()
    results = predict(segmentor, source, tmp_path / 'out')
    assert [r['picture'] for r in results] == ['clip_000000', 'clip_000001', 'clip_000002']
    assert mmcv.VideoReader(str(tmp_path / 'out' / 'clip.mp4')).frame_cnt == 3


def test_bad_sources_are_one_sentence(segmentor, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'x.txt').write_text('text')
    (tmp_path / 'broken.jpg').write_bytes(b'not a picture')
    (tmp_path / 'broken.mp4').write_bytes(b'not a video')
    for name, error, message in [
        ('nowhere', FileNotFoundError, 'does not exist'),
        ('empty', FileNotFoundError, 'holds no'),
        ('x.txt', ValueError, 'neither a picture nor a video'),
        ('broken.jpg', ValueError, 'cannot be read as a picture'),
        ('broken.mp4', ValueError, 'cannot be read as a video'),
    ]:
        with pytest.raises(error, match=message):
            predict(segmentor, tmp_path / name, tmp_path / 'out')


def test_classifier_is_no_config_for_inference():
    with pytest.raises(ValueError, match='needs default_scope mmdet or mmseg'):
        build_inferencer(Config(dict(default_scope='mmpretrain')), 'weights.pth')
