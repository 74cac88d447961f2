"""On real images: train, be killed, resume, test. Skipped where the images are absent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirrorla_mm.engine.checkpoint import load_checkpoint_file
from mirrorla_mm.engine.resuming import find_latest_checkpoint

from .conftest import REPOSITORY

EVALUATED = ('val', 'test')
_LOADERS = [
    f'{split}_dataloader.{option}'
    for split in ('train', *EVALUATED)
    for option in ('num_workers=0', 'persistent_workers=False', 'dataset.indices=2')
]
_SMALL = [
    'train_dataloader.dataset.pipeline.2.scale=(128,128)',
    *(f'{split}_dataloader.dataset.pipeline.1.scale=(128,128)' for split in EVALUATED),
]
_DETECTION = [
    *_SMALL,
    'train_dataloader.batch_size=1',
    'model.neck.in_channels=[32,64,128,384]',
    'model.train_cfg.rpn_proposal.max_per_img=50',
    'model.train_cfg.rcnn.sampler.num=32',
    'model.test_cfg.rcnn.max_per_img=10',
]
_SEGMENTATION = [
    *_SMALL,
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
    'model.data_preprocessor.size=(64,64)',
]
CASES = {
    'coco': (
        'mask_rcnn/mask-rcnn_mirrorla-t_fpn_amp-1x_coco.py',
        _DETECTION,
        ('train_cfg.max_epochs', 'epoch'),
    ),
    'ade': (
        'sem_fpn/mirrorla-t_fpn_4xb4-80k_ade20k-512x512.py',
        [*_SEGMENTATION, 'model.neck.in_channels=[32,64,128,384]'],
        ('train_cfg.max_iters', 'iter'),
    ),
    'cityscapes': (
        'efficientvit_head/mirrorla-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py',
        [*_SEGMENTATION, 'model.decode_head.in_channels=[64,128,384]'],
        ('train_cfg.max_iters', 'iter'),
    ),
}


def kill_after_first_checkpoint(command: list, work_dir: Path) -> None:
    """Start a training run and kill it without warning once it has saved something."""
    log = work_dir.with_suffix('.log')
    with log.open('w') as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'},
        )
    try:
        deadline = time.monotonic() + 500
        while not list(work_dir.glob('*.pth')):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_train_resume_and_test(name, image_root, run, tmp_path):
    root = image_root(name)
    path, options, (limit, unit) = CASES[name]
    config, work_dir = REPOSITORY / 'configs' / path, tmp_path / 'w'
    common = [
        'model.backbone.arch=xt',
        'default_hooks.checkpoint.interval=1',
        *_LOADERS,
        f'data_root={root}',
    ]
    arguments = [config, '--work-dir', work_dir, '--cfg-options', *common, *options]
    # One start is killed without warning: more would repeat minutes of the engine's own tests.
    if name == 'cityscapes':
        tool = REPOSITORY / 'tools' / 'train.py'
        kill_after_first_checkpoint([sys.executable, tool, *arguments, f'{limit}=1000'], work_dir)
    else:
        run('train', *arguments, f'{limit}=1')
    done = load_checkpoint_file(find_latest_checkpoint(work_dir))['meta'][unit]
    run('train', *arguments, f'{limit}={done + 1}', '--resume')
    latest = find_latest_checkpoint(work_dir)
    assert load_checkpoint_file(latest)['meta'][unit] == done + 1
    run('test', config, latest, *arguments[1:])
    assert list(work_dir.glob('*/2*.json'))
