"""Converters, on files made with the authors' own code."""

import argparse
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from mirrorla_mm.analysis.paper_tables import quick_bases
from mirrorla_mm.backbones import nalaformer, ravlt
from mirrorla_mm.converters import (
    ConversionError,
    convert_backbone,
    convert_nalaformer,
    convert_ravlt,
    convert_swin_pvt,
    fit,
    read_state_dict,
    rename_keys,
    write_checkpoint,
)
from mirrorla_mm.engine import CheckpointError
from mirrorla_mm.engine.launch import add_common_arguments, load_config
from mirrorla_mm.necks import ProjectionNeck
from mirrorla_mm.registry import MODELS
from tests.archs import RECORDED
from tests.official_files import NALAFORMER_ARCH, nalaformer_file

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
            torch.testing.assert_close(ours, theirs.reshape(ours.shape), atol=1e-5, rtol=1e-4)


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


@pytest.mark.parametrize('container', ['model', 'state_dict', 'params_ema', 'params'])
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


@pytest.mark.slow
def test_command_line_writes_a_checkpoint_that_mmengine_loads(
    oracle, tmp_path, monkeypatch, capsys
):
    data = oracle('ravlt_det_linear')
    torch.save(dict(model=data['state_dict']), tmp_path / 'official.pth')
    files = (tmp_path / 'official.pth', tmp_path / 'ours.pth')
    options = ('--to', 'MirrorLA', '--layout', 'linear')
    printed = run_tool('ravlt', *files, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert 'stages.3.0.attn.reflection.theta' in printed
    assert 'arch={' in printed and "'_delete_': True" in printed
    converted = convert_ravlt(data['state_dict'], to='MirrorLA', layout='linear')
    model = nn.ModuleDict(dict(backbone=MODELS.build(converted.backbone)))
    load_checkpoint(model, str(tmp_path / 'ours.pth'), strict=True)


TOY = dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2))
DENSE = dict(
    type='mirrorla_mm.MirrorLA', arch=TOY, layout=('linear', 'softmax'), out_indices=(0, 1)
)


def classifier(**options) -> dict[str, torch.Tensor]:
    """Weights of a classifier as mmpretrain names them."""
    backbone = MODELS.build({**DENSE, 'out_indices': (1,), 'out_norm': False, **options})
    model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(16, 3)))
    return model.state_dict()


def test_backbone_with_more_outputs_than_the_config_is_taken_without_their_norms():
    weights = classifier(out_indices=(0, 1), out_norm=True)
    converted = convert_backbone(weights, {**DENSE, 'out_indices': (1,)})
    assert converted.left_out == ('backbone.norms.0.weight', 'backbone.norms.0.bias')
    assert converted.new == ()
    assert 'backbone.norms.1.weight' in converted.state_dict


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


def run_tool(name: str, *args, monkeypatch, capsys) -> str:
    """Run a converter as the command line does; return what it prints."""
    monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
    runpy.run_path(str(ROOT / 'tools' / 'model_converters' / f'{name}.py'), run_name='__main__')
    return capsys.readouterr().out


def configured(config: str, printed: str):
    """The config of a run with the options that a converter's report gives."""
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    options = shlex.split(printed[printed.index('--cfg-options') :].replace('\\\n', ' '))
    with quick_bases():
        cfg = load_config(parser.parse_args([str(ROOT / 'configs' / config), *options]))
    init_default_scope(cfg.default_scope)
    return cfg


def assert_starts_from(cfg, file: Path) -> None:
    """The backbone of the config, initialised, has every weight of the file."""
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    loaded = backbone.state_dict()
    weights = torch.load(file, weights_only=True)['state_dict']
    written = {k.removeprefix('backbone.'): v for k, v in weights.items() if 'backbone.' in k}
    assert len(written) > 50
    for key, value in written.items():
        assert torch.equal(loaded[key], value), key


REPORTS = {
    'ravlt_cls_paper': ('ravlt', 'mask_rcnn/mask-rcnn_ravlt-t_fpn_amp-1x_coco.py', ()),
    'ravlt_det_paper': (
        'ravlt',
        'mask_rcnn/mask-rcnn_mirrorla-t-linear_fpn_amp-1x_coco.py',
        ('--to', 'MirrorLA'),
    ),
    'ravlt_det_linear': (
        'ravlt',
        'sem_fpn/ravlt-t_fpn_4xb4-80k_ade20k-512x512.py',
        ('--layout', 'linear'),
    ),
    'nalaformer': ('nalaformer', 'retinanet/retinanet_nalaformer-t_fpn_1x_coco.py', ()),
    'flatten_swin': ('swin_pvt', 'retinanet/retinanet_flatten-swin-t_fpn_1x_coco.py', ()),
    'flatten_pvt': ('swin_pvt', 'mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_amp-1x_coco.py', ()),
    'polaformer_swin': ('swin_pvt', 'retinanet/retinanet_pola-swin-t_fpn_1x_coco.py', ()),
    'polaformer_pvt': ('swin_pvt', 'retinanet/retinanet_pola-pvt-t_fpn_1x_coco.py', ()),
}


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=[pytest.mark.slow] * (n != 'ravlt_det_linear')) for n in REPORTS],
)
def test_dense_config_starts_from_the_file_by_the_line_that_the_report_gives(
    name, oracle, tmp_path, monkeypatch, capsys
):
    tool, config, options = REPORTS[name]
    monkeypatch.setitem(ravlt.ARCHS, 'toy', RECORDED)
    monkeypatch.setitem(nalaformer.ARCHS, 'toy', NALAFORMER_ARCH)
    if name == 'nalaformer':
        model = nalaformer.NaLaFormer('toy', out_indices=(3,), out_norm=False)
        weights = nalaformer_file(model)
    else:
        weights = oracle(name)['state_dict']
    torch.save(weights, tmp_path / 'official.pth')
    file = tmp_path / 'ours.pth'
    printed = run_tool(
        tool, tmp_path / 'official.pth', file, *options, monkeypatch=monkeypatch, capsys=capsys
    )
    assert_starts_from(configured(config, printed), file)


def test_dense_config_starts_from_the_backbone_of_a_training(tmp_path, monkeypatch, capsys):
    config = 'quickstart/retinanet_mirrorla-xt_fpn_demo.py'
    backbone = dict(type='mirrorla_mm.MirrorLA', arch='xt', layout='linear')
    weights = nn.ModuleDict(dict(backbone=MODELS.build(backbone))).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'trained.pth')
    file = tmp_path / 'backbone.pth'
    printed = run_tool(
        'backbone',
        ROOT / 'configs' / config,
        tmp_path / 'trained.pth',
        file,
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert_starts_from(configured(config, printed), file)


def test_the_released_t_of_nalaformer_has_a_name_and_the_papers_t_refuses_it(tmp_path):
    arch = dict(nalaformer.ARCHS['t-mlp4'])
    file = nalaformer_file(nalaformer.NaLaFormer('t-mlp4', out_indices=(3,), out_norm=False), arch)
    converted = convert_nalaformer(file)
    assert converted.backbone['arch'] == 't-mlp4'
    write_checkpoint(converted, tmp_path / 'nala.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'nala.pth'))
    with pytest.raises(CheckpointError, match=r"ffn.* has the shape .*'arch': 't-mlp4'"):
        nalaformer.NaLaFormer('t', init_cfg=init_cfg).init_weights()


def test_warm_start_is_drawn_from_its_seed_and_leaves_the_global_one(oracle):
    weights = oracle('ravlt_det_paper')['state_dict']
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (
        convert_ravlt(weights, to='MirrorLA', seed=seed).state_dict for seed in (1, 1, 2)
    )
    theta = next(key for key in first if key.endswith('reflection.theta'))
    assert torch.equal(first[theta], again[theta]) and not torch.equal(first[theta], other[theta])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ('name', 'option', 'expected'),
    [('flatten_swin', 'focusing_factor', 3), ('polaformer_pvt', 'alpha', 4)],
)
def test_number_that_a_file_does_not_tell_is_said_and_can_be_given(
    oracle, name, option, expected, tmp_path, monkeypatch, capsys
):
    weights = oracle(name)['state_dict']
    converted = convert_swin_pvt(weights)
    assert converted.assumed == {option: expected}
    other = convert_swin_pvt(weights, **{option: 2})
    assert other.backbone['attn_cfg'][option] == 2
    torch.save(weights, tmp_path / 'official.pth')
    printed = run_tool(
        'swin_pvt',
        tmp_path / 'official.pth',
        tmp_path / 'ours.pth',
        f'--{option.replace("_", "-")}=2.5',
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert f'Assumed, as the file does not tell: {option}=2.5' in printed
    assert f'model.backbone.attn_cfg.{option}=2.5' in printed


RAVLT_ENTRY = 'layers.0.blocks.0.attn.qkvo.weight'


@pytest.mark.parametrize(
    ('convert', 'entry', 'message'),
    [
        (convert_ravlt, 'layers.0.blocks.0.cpe1.weight', 'of NaLaFormer: .*/nalaformer.py'),
        (convert_nalaformer, RAVLT_ENTRY, 'of RAVLT: .*/ravlt.py'),
        (convert_nalaformer, f'backbone.{RAVLT_ENTRY}', 'of RAVLT: .*/ravlt.py'),
        (convert_swin_pvt, 'layers.0.blocks.0.attn.an_bias', 'of Agent Attention: no converter'),
        (convert_swin_pvt, 'layers.0.blocks.0.attn.residual.0.weight', 'of InLine: no converter'),
        (convert_ravlt, 'block1.0.attn.positional_encoding', 'PolaFormer: .*/swin_pvt.py'),
        (convert_swin_pvt, 'backbone.stages.0.0.pos.weight', 'training: .*/backbone.py'),
        (
            convert_ravlt,
            'layers.0.blocks.0.attn.relative_position_bias_table',
            'Swin with softmax attention: mirrorla_mm.LinearSwin reads it',
        ),
    ],
)
def test_file_of_another_family_is_refused_with_what_to_do(convert, entry, message):
    with pytest.raises(ConversionError, match=message):
        convert({entry: torch.ones(4, 4)})


def test_pvt_with_softmax_stages_is_refused_by_their_number(oracle):
    weights = oracle('flatten_pvt')['state_dict']
    mixed = {k: v for k, v in weights.items() if not k.startswith('block3') or '.norm' in k}
    with pytest.raises(ConversionError, match=r'Stages \[3\] of this PVT have softmax attention'):
        convert_swin_pvt(mixed)


def test_thousands_of_block_names_are_refused_before_they_are_compared():
    names = {f'layers.0.blocks.{i}.norm1.norm.weight': torch.ones(4) for i in range(10_000)}
    with pytest.raises(ConversionError, match='it has 10000 blocks'):
        convert_ravlt({**names, RAVLT_ENTRY: torch.ones(4)})
