"""Configs find the package's classes by its scope, and nobody else's names are touched."""

import subprocess
import sys

import pytest
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

import mirrorla_mm
from mirrorla_mm.registry import MODELS


def run(code):
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    'package, config',
    [
        ('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'),
        ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'),
    ],
)
def test_scope_prefix_alone_puts_it_into_an_upstream_model(package, config):
    out = run(
        f'import {package}\n'
        'from mmengine.config import Config\n'
        f'from {package}.registry import MODELS\n'
        f'from {package}.utils import register_all_modules\n'
        'register_all_modules()\n'
        f'cfg = Config.fromfile({package}.__path__[0] + "/.mim/configs/{config}")\n'
        'cfg.merge_from_dict(dict(model=dict(\n'
        '    backbone=dict(_delete_=True, type="mirrorla_mm.MirrorLA", arch="xt"),\n'
        '    neck=dict(in_channels=[32, 64, 128, 384]))))\n'
        'print(type(MODELS.build(cfg.model).backbone).__name__)\n'
    )
    assert out == 'MirrorLA'


def test_backbones_are_offered_by_name():
    assert set(mirrorla_mm.BACKBONES) <= set(dir(mirrorla_mm))
    assert mirrorla_mm.MirrorLA is MODELS.get('MirrorLA')


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmengine', 'mirrorla_mm'])
def test_it_is_found_from_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        model = ROOT.build(dict(type='mirrorla_mm.MirrorLA', arch='xt', layout='linear'))
    assert type(model).__name__ == 'MirrorLA'


OWN = """
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, MODEL_WRAPPERS, MODELS
from mmengine.runner import checkpoint
from torch import nn
import torch
load, load_url = torch.load, torch.hub.load_state_dict_from_url
@HOOKS.register_module()
class SeedIterationHook:
    pass
for name in ('RAVLT', 'MirrorLA', 'LinearSwin', 'EfficientViTHead'):
    MODELS.register_module(name=name, module=type(name, (nn.Module,), {}))
@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(nn.Module):
    pass
@register_backend('own', prefixes='own')
class OwnBackend(LocalBackend):
    pass
"""
CHECKS = """
assert type(MODELS.build(dict(type='RAVLT'))).__module__ == '__main__'
assert MODELS.get('mirrorla_mm.RAVLT').__module__.startswith('mirrorla_mm')
assert MODELS.get('LinearSwin').__module__ == '__main__'
assert HOOKS.get('SeedIterationHook') is SeedIterationHook
assert HOOKS.get('CheckpointHook') is CheckpointHook
assert MODEL_WRAPPERS.get('CPUDistributedDataParallel') is CPUDistributedDataParallel
assert type(get_file_backend('some/path')) is LocalBackend
assert type(get_file_backend('own://path')) is OwnBackend
assert type(get_file_backend(backend_args=dict(backend='local'))) is LocalBackend
assert torch.load is load and torch.hub.load_state_dict_from_url is load_url
print('untouched')
"""


@pytest.mark.slow
@pytest.mark.parametrize('order', ['before', 'after'])
def test_users_own_names_and_functions_stay_in_either_import_order(order):
    ours = 'import mirrorla_mm\n'
    assert run((ours + OWN if order == 'before' else OWN + ours) + CHECKS) == 'untouched'


@pytest.mark.slow
def test_mmdet_and_mmseg_are_imported_when_a_host_or_head_on_them_is_used():
    out = run(
        'import sys, mirrorla_mm\n'
        'from mmengine.registry import MODELS\n'
        'loaded = lambda: [p for p in ("mmdet.models", "mmseg.models") if p in sys.modules]\n'
        'before = loaded()\n'
        'swin = MODELS.build(dict(type="mirrorla_mm.LinearSwin", arch="t"))\n'
        'after = loaded()\n'
        'from mirrorla_mm.backbones import LinearSwin\n'
        'same = type(swin) is LinearSwin is MODELS.get("mirrorla_mm.LinearSwin")\n'
        'print(before, after, same)\n'
    )
    assert out == "[] ['mmdet.models'] True"


@pytest.mark.parametrize(
    'scope, name, options',
    [
        ('mmdet', 'LinearPVT', dict(arch='t')),
        ('mmseg', 'EfficientViTHead', dict(in_channels=[8, 8, 8], channels=8, num_classes=3)),
    ],
)
def test_what_builds_on_them_is_found_by_name(scope, name, options):
    with DefaultScope.overwrite_default_scope(scope):
        assert type(ROOT.build(dict(type=f'mirrorla_mm.{name}', **options))).__name__ == name


def test_a_package_that_loads_lazily_still_names_what_it_lacks():
    with pytest.raises(AttributeError, match="'mirrorla_mm.heads' has no attribute 'NoSuchHead'"):
        mirrorla_mm.heads.NoSuchHead  # noqa: B018


@pytest.mark.slow
def test_a_second_registration_does_no_harm():
    out = run(
        'import importlib, sys\n'
        'import mirrorla_mm, mirrorla_mm.registry\n'
        'importlib.reload(mirrorla_mm.registry)\n'
        'importlib.reload(sys.modules["mirrorla_mm.backbones.ravlt"])\n'
        'importlib.reload(sys.modules["mirrorla_mm.attention.rala"])\n'
        'importlib.reload(mirrorla_mm)\n'
        'from mmengine.registry import MODELS\n'
        'print(type(MODELS.build(dict(type="mirrorla_mm.RAVLT", arch="xt"))).__name__)\n'
    )
    assert out == 'RAVLT'


def test_nothing_is_registered_outside_of_the_scope():
    assert not any(
        module.__module__.startswith('mirrorla_mm') for module in ROOT.module_dict.values()
    )
    assert {'RALA', 'RAVLT', 'LinearSwin'} <= MODELS.module_dict.keys()
