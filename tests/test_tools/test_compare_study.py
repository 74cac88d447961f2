"""The study of attentions in one small segmentor, at toy size."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from tests.conftest import REPOSITORY

CONFIG = REPOSITORY / 'configs/studies/ravlt-study_efficientvit-head_1xb8-200_camvid-96x96.py'

# Numbers that ADE20K has for the classes of the study.
CLASSES = np.array([2, 3, 5, 7, 12, 13, 21, 33, 44, 94, 128], np.uint8)


@pytest.fixture
def command(tmp_path) -> list[str]:
    """Two iterations on images of noise."""
    generator = np.random.default_rng(0)
    for folder in ('images/training', 'images/validation'):
        labels = tmp_path / folder.replace('images', 'annotations')
        for place in (tmp_path / folder, labels):
            place.mkdir(parents=True)
        for number in range(4):
            image = generator.integers(0, 255, (120, 160, 3), np.uint8)
            cv2.imwrite(str(tmp_path / folder / f'{number}.jpg'), image)
            cv2.imwrite(str(labels / f'{number}.png'), generator.choice(CLASSES, (120, 160)))
    cfg = Config.fromfile(CONFIG)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.param_scheduler = cfg.param_scheduler[1:]
    cfg.param_scheduler[0].begin = 0
    cfg.dump(tmp_path / 'toy.py')
    return [
        *('--config', 'toy.py', '--data-root', '.', '--work-dir', 'work'),
        *('--rows', 'relu', '--seeds', '0', '--iters', '2'),
    ]


@pytest.mark.slow
def test_a_run_that_was_stopped_after_its_last_checkpoint_is_validated(run, command):
    found, file = [], Path('work/relu/seed-0.json')
    for _ in range(2):
        run('studies/compare', *command)
        result = json.loads(file.read_text())
        found.append((result['mIoU'], result['aAcc']))
        file.unlink()
    assert found[1] == found[0] != (0, 0)
