"""Converters, on files made with the authors' own code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from mirrorla_mm.converters import (
    ConversionError,
    convert_backbone,
    convert_ravlt,
    fit,
    read_state_dict,
    rename_keys,
    write_checkpoint,
)
from mirrorla_mm.heads import ProjectionNeck
from mirrorla_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
KINDS = {'ravlt_cls_paper': 'paper', 'ravlt_det_paper': 'paper', 'ravlt_det_linear': 'linear'}


def build(converted) -> nn.ModuleDict:
    """A model with the converted names, built from the converter's own config."""
    parts = dict(backbone=MODELS.build(converted.backbone))
    weights = converted.state_dict
    if 'neck.proj.weight' in weights:
        parts['neck'] = ProjectionNeck(*weights['neck.proj.weight'].shape[1::-1])
        parts['head'] = nn.ModuleDict(dict(fc=nn.Linear(*weights['head.fc.weight'].shape[::-1])))
    model = nn.ModuleDict(parts)
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def outputs(model: nn.ModuleDict, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    features = model['backbone'](x)
    if 'neck' not in model:
        return features
    return (model['head']['fc'](model['neck'](features)[0]),)


@pytest.mark.parametrize('name', KINDS)
def test_converted_ravlt_gives_the_authors_outputs(oracle, name):
    data = oracle(name)
    model = build(convert_ravlt(data['state_dict'], layout=KINDS[name]))
    for x, expected in zip(data['x'], data['y']):
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(outputs(model, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs.reshape(ours.shape), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', KINDS)
def test_warm_start_of_mirrorla_keeps_all_and_adds_reflections_alone(oracle, name):
    weights = oracle(name)['state_dict']
    plain = convert_ravlt(weights, layout=KINDS[name])
    mirror = convert_ravlt(weights, to='MirrorLA', layout=KINDS[name])
    assert mirror.new
    assert all('.attn.reflection.' in key for key in mirror.new)
    assert plain.new == ()
    assert mirror.state_dict.keys() - plain.state_dict.keys() == set(mirror.new)
    for key, value in plain.state_dict.items():
        torch.testing.assert_close(mirror.state_dict[key], value, rtol=0, atol=0)
    build(mirror)


def test_a_detector_keeps_its_neck_and_heads(oracle):
    weights = oracle('ravlt_det_paper')['state_dict']
    detector = {f'backbone.{key}': value for key, value in weights.items()}
    detector['neck.lateral_convs.0.conv.weight'] = torch.ones(1)
    converted = convert_ravlt(detector)
    assert converted.state_dict.keys() == convert_ravlt(weights).state_dict.keys() | {
        'neck.lateral_convs.0.conv.weight'
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda w: w.pop('layers.2.blocks.1.ffn.fc2.bias'),
            r'missing .*stages\.2\.1\.ffn\.fc2\.bias',
        ),
        (lambda w: w.update({'layers.0.blocks.0.extra': torch.ones(1)}), r'unexpected .*extra'),
        (
            lambda w: w.update({'extra_norms.0.norm.weight': torch.ones(3)}),
            r'norms\.0\.weight.*\(3,\)',
        ),
        (lambda w: w.pop('layers.0.RoPE.angle'), r"'layers\.0\.RoPE\.angle' is missing"),
        (lambda w: w.clear(), 'no official RAVLT'),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(oracle, change, message):
    weights = oracle('ravlt_det_paper')['state_dict']
    change(weights)
    with pytest.raises(ConversionError, match=message):
        convert_ravlt(weights)


def test_two_entries_for_one_name_are_refused():
    with pytest.raises(ConversionError, match='second entry'):
        rename_keys(dict(a=torch.ones(1), b=torch.ones(1)), [('[ab]', 'c')])


def test_only_axes_of_size_one_may_differ():
    layer = nn.Linear(3, 2)
    fitted, new = fit(layer, dict(weight=torch.ones(2, 3, 1, 1), bias=torch.ones(2)))
    assert fitted['weight'].shape == (2, 3)
    assert new == ()
    with pytest.raises(ConversionError, match="'weight' has shape"):
        fit(layer, dict(weight=torch.ones(3, 2), bias=torch.ones(2)))


@pytest.mark.parametrize('container', ['model', 'state_dict'])
def test_weights_are_found_where_training_scripts_put_them(tmp_path, container):
    torch.save({container: {'module.a': torch.ones(2)}, 'epoch': 3}, tmp_path / 'x.pth')
    assert list(read_state_dict(tmp_path / 'x.pth')) == ['a']


def test_a_file_without_weights_is_refused(tmp_path):
    torch.save(dict(epoch=3), tmp_path / 'x.pth')
    with pytest.raises(ConversionError, match='holds no weights'):
        read_state_dict(tmp_path / 'x.pth')


def test_a_dense_backbone_starts_from_the_written_file(oracle, tmp_path):
    data = oracle('ravlt_cls_paper')
    converted = convert_ravlt(data['state_dict'], to='MirrorLA')
    write_checkpoint(converted, tmp_path / 'sub' / 'warm.pth')
    cfg = dict(type='mirrorla_mm.MirrorLA', arch=converted.backbone['arch'])
    cfg['init_cfg'] = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'sub' / 'warm.pth'), prefix='backbone.'
    )
    backbone = MODELS.build(cfg)
    backbone.init_weights()
    loaded = backbone.state_dict()
    for key, value in converted.state_dict.items():
        if key.startswith('backbone.'):
            torch.testing.assert_close(loaded[key[len('backbone.') :]], value, rtol=0, atol=0)


def test_command_line_writes_a_checkpoint_that_mmengine_loads(oracle, tmp_path):
    data = oracle('ravlt_det_linear')
    torch.save(dict(model=data['state_dict']), tmp_path / 'official.pth')
    command = [sys.executable, 'tools/model_converters/ravlt.py']
    command += [str(tmp_path / 'official.pth'), str(tmp_path / 'ours.pth')]
    options = ['--to', 'MirrorLA', '--layout', 'linear']
    done = subprocess.run(
        command + options,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'stages.3.0.attn.reflection.theta' in done.stdout
    converted = convert_ravlt(data['state_dict'], to='MirrorLA', layout='linear')
    model = nn.ModuleDict(dict(backbone=MODELS.build(converted.backbone)))
    load_checkpoint(model, str(tmp_path / 'ours.pth'), strict=True)

    torch.save(dict(model={'other.weight': torch.ones(1)}), tmp_path / 'official.pth')
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'no official RAVLT' in done.stderr
    assert 'Traceback' not in done.stderr


TOY = dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2))
DENSE = dict(
    type='mirrorla_mm.MirrorLA', arch=TOY, layout=('linear', 'softmax'), out_indices=(0, 1)
)


def classifier(**options) -> dict[str, torch.Tensor]:
    """Weights of a classifier as mmpretrain names them."""
    backbone = MODELS.build({**DENSE, 'out_indices': (1,), 'out_norm': False, **options})
    model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(16, 3)))
    return model.state_dict()


def test_classifier_becomes_the_backbone_of_a_dense_config():
    weights = classifier()
    converted = convert_backbone(weights, DENSE)
    kept = {key: value for key, value in weights.items() if key.startswith('backbone.')}
    assert set(converted.new) == {
        f'backbone.norms.{i}.{name}' for i in (0, 1) for name in ('weight', 'bias')
    }
    assert converted.state_dict.keys() == kept.keys() | set(converted.new)
    assert all(torch.equal(converted.state_dict[key], value) for key, value in kept.items())


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        (dict(head=torch.ones(1)), 'no backbone in it'),
        (classifier(layout=('linear', 'linear')), 'does not fit the model'),
        (classifier(arch=dict(TOY, depths=(1, 2))), 'unexpected .*stages.1.1'),
        (classifier(arch=dict(TOY, embed_dims=(8, 12), num_heads=(1, 1))), 'has shape'),
    ],
    ids=('none', 'layout', 'depth', 'width'),
)
def test_backbone_of_another_config_is_refused(weights, message):
    with pytest.raises(ConversionError, match=message):
        convert_backbone(weights, DENSE)
