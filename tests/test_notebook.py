"""docs/tutorials/first_prediction.ipynb runs from its first cell to its last."""

import os
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mirrorla_mm.apis import Inferencer  # noqa: F401  (the scopes that the config names)
from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / 'docs' / 'tutorials' / 'first_prediction.ipynb'
CONFIG = REPOSITORY / 'configs/quickstart/mirrorla-xt_efficientvit-head_demo-160x160.py'


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip('nbformat', reason='the extra "docs" is not installed')
    nbclient = pytest.importorskip('nbclient', reason='the extra "docs" is not installed')
    pytest.importorskip('ipykernel', reason='the extra "docs" is not installed')
    # An untrained model stands in for the quickstart's.
    work_dir = tmp_path / 'segmentor'
    work_dir.mkdir()
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), work_dir / 'epoch_5.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_5.pth'))
    monkeypatch.setenv('QUICKSTART', str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(REPOSITORY), *sys.path]))
    monkeypatch.setenv('JUPYTER_PLATFORM_DIRS', '1')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=300, resources=dict(metadata=dict(path=str(REPOSITORY)))
    ).execute()
    drawn = [
        output
        for cell in notebook.cells
        for output in cell.get('outputs', [])
        if 'image/png' in output.get('data', {})
    ]
    assert len(drawn) == 2
