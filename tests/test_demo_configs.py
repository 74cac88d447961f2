"""The quickstart's configs: they build, and name the classes that are drawn."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mirrorla_mm.demo.dataset import Recipe, draw_dataset
from mirrorla_mm.demo.scenes import BACKGROUND, CLASSES, PALETTE

CONFIGS = Path(__file__).parents[1] / 'configs' / 'quickstart'
DETECTOR = 'retinanet_mirrorla-xt_fpn_demo.py'
SEGMENTOR = 'mirrorla-xt_efficientvit-head_demo-160x160.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'demo'
    draw_dataset(root, Recipe(train=4, val=2))
    return root


@pytest.fixture
def load(data, monkeypatch):
    def load(name):
        monkeypatch.setenv('MIRRORLA_DEMO_DATA', str(data))
        return Config.fromfile(CONFIGS / name)

    return load


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTOR])
def test_config_trains_a_mirrorla_xt_on_the_drawn_scenes(load, name):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        model = MODELS.build(cfg.model)
    assert len(dataset) == 4
    assert type(model.backbone).__name__ == 'MirrorLA'
    assert model.backbone.embed_dims == (32, 64, 128, 384)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), training=True)
        losses = model(**batch, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        assert parameter.grad is not None


def test_detection_config_names_the_drawn_classes(load):
    cfg = load(DETECTOR)
    assert cfg.model.bbox_head.num_classes == len(CLASSES)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo == dict(classes=CLASSES, palette=list(PALETTE[1:]))


def test_segmentation_config_names_the_drawn_classes(load):
    cfg = load(SEGMENTOR)
    assert cfg.model.decode_head.num_classes == len(CLASSES) + 1
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        expected = dict(classes=(BACKGROUND, *CLASSES), palette=list(PALETTE))
        assert loader.dataset.metainfo == expected


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTOR])
def test_data_directory_defaults_to_the_quickstarts(name, monkeypatch):
    monkeypatch.delenv('MIRRORLA_DEMO_DATA', raising=False)
    assert Config.fromfile(CONFIGS / name).train_dataloader.dataset.data_root == 'data/demo/'


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTOR])
def test_reflections_do_not_decay(load, name):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decays = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    of_reflections = {
        decays[id(p)] for name, p in model.named_parameters() if '.reflection.' in name
    }
    assert of_reflections == {0.0}
