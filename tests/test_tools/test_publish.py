"""A published file loads on every road that a checkpoint of a training does."""

import importlib

import pytest
import torch
from mmengine.config import Config

from mirrorla_mm.apis import Inferencer
from mirrorla_mm.engine.checkpoint import load_checkpoint_file

from .conftest import TASKS

pytest.importorskip('safetensors')


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_published_file_loads_on_every_road(task, config, run, tmp_path, capsys):
    path = config(task)
    quick = ('--work-dir', 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    run('train', path, *quick)
    trained = load_checkpoint_file(tmp_path / 'w/epoch_1.pth')['state_dict']
    cfg = Config.fromfile(path)
    apis = importlib.import_module(f'{cfg.default_scope}.apis')
    build = apis.init_detector if cfg.default_scope == 'mmdet' else apis.init_model
    run('model_converters/publish', 'w/epoch_1.pth', f'{task}.safetensors')
    [file] = tmp_path.glob(f'{task}-*.safetensors')
    # The command lines: test, fine-tune, start a backbone; but there is nothing to resume.
    run('test', path, file, '--work-dir', 'w')
    init_cfg = 'model.backbone.init_cfg'
    start = {
        'detection': [f'load_from={file}'],
        'segmentation': [f'{init_cfg}.type=Pretrained', f'{init_cfg}.checkpoint={file}'],
    }
    run('train', path, *quick, *start[task])
    with pytest.raises(SystemExit):
        run('train', path, '--resume', file)
    assert 'no training state to resume' in capsys.readouterr().err
    # The interfaces of this package, mmdet and mmseg.
    ours = Inferencer(path, file, 'cpu')
    assert equal(ours.model.state_dict(), trained)
    model = build(cfg, str(file), device='cpu')
    assert equal(model.state_dict(), trained)
    assert tuple(model.dataset_meta['classes']) == tuple(ours.classes)
    upstream = apis.DetInferencer if cfg.default_scope == 'mmdet' else apis.MMSegInferencer
    assert equal(upstream(path, weights=str(file), device='cpu').model.state_dict(), trained)
