"""Mask2Former, DINO and RTMDet-Ins: toy models of the recipes take a step and predict."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mirrorla_mm.analysis.flops import build_empty, config_complexity
from mirrorla_mm.analysis.paper_tables import quick_bases
from mirrorla_mm.apis import Inferencer
from tests.training_step import take_step

CONFIGS = Path(__file__).parents[1] / 'configs'
INSTANCES = 'mask2former/mask2former_mirrorla-t{}_8xb2-lsj-50e_coco.py'
PANOPTIC = 'mask2former/mask2former_mirrorla-t{}_8xb2-lsj-50e_coco-panoptic.py'
SEMANTIC = 'mask2former/mask2former_mirrorla-t{}_8xb2-160k_ade20k-512x512.py'
DINO = 'dino/dino-4scale_mirrorla-t{}_8xb2-12e_coco.py'
RTMDET = 'rtmdet/rtmdet-ins_mirrorla-t{}_4xb32-100e_coco.py'
RECIPES = (INSTANCES, PANOPTIC, SEMANTIC, DINO, RTMDET)
TINY = dict(embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))


def load(recipe: str, layout: str = '') -> Config:
    with quick_bases():
        return Config.fromfile(CONFIGS / recipe.format(layout))


def toy(cfg: Config) -> Config:
    """A tiny backbone, one or two layers of the transformers, few queries and points."""
    model = cfg.model
    model.backbone.update(arch=TINY)
    channels = list(TINY['embed_dims'])
    head = model.get('panoptic_head') or model.get('decode_head')
    if head:
        head.update(in_channels=channels, num_queries=10)
        head.pixel_decoder.encoder.num_layers = 1
        head.transformer_decoder.num_layers = 2
        (model.train_cfg or head.train_cfg).num_points = 64
        model.data_preprocessor.pop('batch_augments', None)
    else:
        model.neck.in_channels = channels[1:]
    if model.type == 'DINO':
        model.num_queries = 20
        model.encoder.num_layers = model.decoder.num_layers = 1
        model.dn_cfg.group_cfg.num_dn_queries = 4
        model.test_cfg.max_per_img = 5
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = (64, 64)
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    return model


def batch(cfg: Config) -> dict:
    """Two images with labels of whatever the recipe learns."""
    torch.manual_seed(0)
    shapes = [[3, 64, 64], [3, 64, 64]]
    if cfg.default_scope == 'mmdet':
        data = demo_mm_inputs(
            2,
            shapes,
            num_items=[2, 1],
            num_classes=80,
            with_mask=cfg.model.type != 'DINO',
            with_semantic=cfg.model.get('test_cfg', {}).get('panoptic_on', False),
        )
        for sample in data['data_samples']:
            sample.set_metainfo(dict(batch_input_shape=(64, 64)))
        return data
    samples = []
    for _ in shapes:
        labels = torch.randint(4, (1, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64)))
        samples.append(sample)
    return dict(inputs=list(torch.randint(256, (2, 3, 64, 64))), data_samples=samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('recipe', 'layout'), [*((recipe, '') for recipe in RECIPES), (INSTANCES, '-linear')]
)
def test_recipe_takes_a_step_and_predicts(recipe, layout):
    cfg = toy(load(recipe, layout))
    model = build(cfg).train()
    idle, changed = take_step(model, cfg, batch(cfg))
    assert not [name for name in idle if name.startswith('backbone.')]
    assert any('reflection.theta' in name for name in changed)
    with torch.no_grad():
        found = model.eval().test_step(batch(cfg))
    assert len(found) == 2
    if recipe == PANOPTIC:
        assert found[0].pred_panoptic_seg.sem_seg.shape[-2:] == (64, 64)
    elif recipe == SEMANTIC:
        assert found[0].pred_sem_seg.data.shape == (1, 64, 64)
    else:
        assert found[0].pred_instances.scores.isfinite().all()


@pytest.mark.parametrize(
    ('recipe', 'lr', 'decay', 'slow', 'norms'),
    [
        (INSTANCES, 1e-4, 0.05, 0.1, 0.0),
        (PANOPTIC, 1e-4, 0.05, 0.1, 0.0),
        (SEMANTIC, 1e-4, 0.05, 0.1, 0.0),
        (DINO, 1e-4, 1e-4, 0.1, 1e-4),
        (RTMDET, 1e-3, 0.05, 1.0, 0.0),
    ],
)
def test_backbone_learns_at_its_rate_and_reflections_do_not_decay(recipe, lr, decay, slow, norms):
    cfg = toy(load(recipe))
    model = build(cfg)
    groups = {
        id(p): (round(group['lr'], 9), group['weight_decay'])
        for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
        for p in group['params']
    }

    def settings(*kinds: type, prefix: str, part: str = '') -> set:
        return {
            groups[id(p)]
            for name, module in model.named_modules()
            if name.startswith(prefix) and part in name and isinstance(module, kinds)
            for key, p in module.named_parameters(recurse=False)
            if key == 'weight'
        }

    rate = round(lr * slow, 9)
    assert settings(torch.nn.Linear, prefix='backbone.') == {(rate, decay)}
    normalising = (torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    assert settings(*normalising, prefix='backbone.') == {(rate, norms)}
    others = settings(torch.nn.Linear, torch.nn.Conv2d, prefix='')
    assert (round(lr, 9), decay) in others
    reflections = {groups[id(p)] for name, p in model.named_parameters() if '.reflection.' in name}
    assert reflections == {(rate, 0.0)}


@pytest.mark.parametrize('recipe', RECIPES)
def test_checkpoints_are_saved_by_the_safe_hook(recipe):
    cfg = load(recipe)
    assert cfg.default_hooks.checkpoint.type == 'mirrorla_mm.CheckpointHook'
    assert 'mirrorla_mm' in cfg.custom_imports.imports
    devices, batch_size = map(int, re.search(r'_(\d+)xb(\d+)', recipe).groups())
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.auto_scale_lr.base_batch_size == devices * batch_size


@pytest.mark.slow
@pytest.mark.parametrize('recipe', [INSTANCES, PANOPTIC, DINO, RTMDET])
def test_inferencer_takes_the_recipe(recipe, tmp_path):
    cfg = toy(load(recipe))
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (64, 64)
        if transform.type == 'Pad':
            transform.size = (64, 64)
    weights = build(copy.deepcopy(cfg)).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'toy.pth')
    image = np.zeros((48, 64, 3), np.uint8)
    for _ in range(2):  # a config serves more than once, though some models write into theirs
        found = Inferencer(cfg, tmp_path / 'toy.pth', 'cpu')(image)
    assert len(found.names) == len(found.scores) == len(found.boxes)
    assert (found.scores[:-1] >= found.scores[1:]).all()
    if recipe != DINO:
        assert found.masks.shape == (len(found.scores), 48, 64)
    assert found.above(0.0).draw(image).shape == image.shape


@pytest.mark.parametrize(
    'recipe', [DINO, *(pytest.param(r, marks=pytest.mark.slow) for r in (PANOPTIC, SEMANTIC))]
)
def test_transformers_are_counted_whole(recipe):
    cfg = toy(load(recipe))
    params = sum(p.numel() for p in build_empty(copy.deepcopy(cfg)).parameters())
    parts = config_complexity(cfg, (64, 96))
    assert sum(part.params for part in parts.values()) == params
    assert parts['transformer'].total > parts['transformer'].layers > 0
    larger = config_complexity(toy(load(recipe)), (128, 192))
    assert larger['transformer'].layers > 2 * parts['transformer'].layers
