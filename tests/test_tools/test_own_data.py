"""docs/own_data.md, followed to the letter on drawn data."""

import json
import runpy

import pytest

from tests.conftest import REPOSITORY
from tests.pages import commands, named_files

PAGE = REPOSITORY / 'docs' / 'own_data.md'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What makes it take seconds: a small model, small images, a few steps.
SHORT = (
    'model.backbone.arch=xt',
    *(f'{loader}.num_workers=0' for loader in LOADERS),
    *(f'{loader}.persistent_workers=False' for loader in LOADERS),
    *(f'{loader}.dataset.indices=4' for loader in LOADERS),
)
SHORTER = {
    'my_detector.py': (
        *SHORT,
        'model.neck.in_channels=[64,128,384]',
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)',
        'test_dataloader.dataset.pipeline.1.scale=(64,64)',
    ),
    'my_segmentor.py': (
        *SHORT,
        'model.decode_head.in_channels=[64,128,384]',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
    ),
}
CHECKPOINTS = {'epoch_12': 'epoch_1', 'iter_2000': 'iter_2'}


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """The folder in which the page's files were written and its data were drawn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    files = named_files(PAGE)
    assert set(files) == {'draw_shapes.py', *SHORTER}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert commands(PAGE)[0] == ['python', 'draw_shapes.py']
    runpy.run_path('draw_shapes.py')
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('config', SHORTER)
def test_every_command_of_the_page_runs(followed, run, config, capsys):
    mine = [words for words in commands(PAGE) if config in words]
    assert {words[1] for words in mine} == {f'tools/{n}.py' for n in ('train', 'test', 'inference')}
    for words in mine:
        text = ' '.join(words[2:])
        for stands, made in CHECKPOINTS.items():
            text = text.replace(stands, made)
        options = text.split()
        if '--cfg-options' in options:
            # The page's own options are tried as they stand, in a folder of their own.
            options += ['--work-dir', 'again', '--cfg-options']
        else:
            options += ['--cfg-options']
        run(words[1].removeprefix('tools/').removesuffix('.py'), *options, *SHORTER[config])
    found = json.loads((followed / 'found' / 'predictions.json').read_text())
    images = list((followed / 'data/shapes/leftImg8bit/val').rglob('*.png'))
    assert len(found) == len(images) == 12
    assert not any('error' in entry for entry in found)
    assert 'norm_eval=True freezes' not in capsys.readouterr().out
    assert len(list((followed / 'found' / 'drawn').rglob('*.png'))) == 12
