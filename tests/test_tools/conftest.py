"""Drawn data, tiny configs for it, and the command lines as functions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mirrorla_mm.demo.dataset import Recipe, draw_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = ('detection', 'segmentation')

_BASES = {
    'detection': 'retinanet_mirrorla-xt_fpn_demo.py',
    'segmentation': 'mirrorla-xt_efficientvit-head_demo-160x160.py',
}
_COMMON = """
custom_imports = dict(imports=['mirrorla_mm'])
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = []
arch = dict(
    _delete_=True, embed_dims=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4]
)
"""
_MODELS = {
    'detection': """
model = dict(
    backbone=dict(arch=arch, init_cfg=None),
    neck=dict(in_channels=[16, 16, 32]),
    test_cfg=dict(score_thr=0.0),
)
""",
    'segmentation': """
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch=arch),
    decode_head=dict(in_channels=[16, 16, 32], channels=16),
)
""",
}


@pytest.fixture(scope='session')
def drawn(tmp_path_factory) -> Path:
    """A drawn data set of a few images."""
    root = tmp_path_factory.mktemp('drawn') / 'demo'
    draw_dataset(root, Recipe(size=64, train=8, val=4))
    return root


@pytest.fixture()
def config(tmp_path, drawn, monkeypatch) -> Callable[..., str]:
    """Writes a tiny config of a task, with more lines where wanted; training takes a second."""
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', str(drawn))

    def write(task: str, more: str = '') -> str:
        base = f"_base_ = '{REPOSITORY / 'configs' / 'quickstart' / _BASES[task]}'\n"
        path = tmp_path / f'{task}.py'
        path.write_text(base + _COMMON + _MODELS[task] + more)
        return str(path)

    return write


def forget_earlier_runs() -> None:
    """Drop mmengine's loggers (they hold an earlier test's stderr), scopes and visualizers."""
    for manager in (MMLogger, MessageHub, DefaultScope, Visualizer, *Visualizer.__subclasses__()):
        manager._instance_dict.clear()


@pytest.fixture()
def run(monkeypatch, tmp_path, plain_configs) -> Callable[..., None]:
    """Runs ``tools/<name>.py`` with arguments, in this process and in the folder of the test."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *args: object) -> None:
        path = REPOSITORY / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'tool_{name}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr('sys.argv', [str(path), *map(str, args)])
        forget_earlier_runs()
        module.main()

    return call
