"""Two processes on CPUs train as one does, and go on after a kill."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import REPOSITORY

EPOCHS, PER_EPOCH, KILLED_AT = 3, 2, 4
HOOK = """
import os
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class LossWriter(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(f'{os.environ["LOSSES"]}.{get_rank()}', 'a') as file:
            print(runner.iter, repr(outputs['loss'].item()), file=file)
        if get_rank() == 1 and runner.iter + 1 == int(os.environ.get('KILL_AT', 0)):
            os.kill(os.getpid(), 9)
"""
# A loss that is a mean over equally many pixels on every process, by nothing that is drawn or
# depends on the pictures beside. The order of the pictures is shuffled.
MORE = """
custom_imports['imports'].append('loss_writer')
custom_hooks = [dict(type='LossWriter')]
train_cfg = dict(max_epochs=3, val_interval=9)
train_dataloader['dataset'] = dict(
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
)
model['backbone'].update(drop_path_rate=0.0, norm_eval=True)
model['decode_head'].update(dropout_ratio=0.0, norm_cfg=dict(type='GN', num_groups=4))
param_scheduler = [dict(type='LinearLR', start_factor=0.2, by_epoch=False, end=5)]
"""


def read(file: Path, processes: int) -> dict[int, float]:
    """Losses by iteration, averaged over the processes; of iterations that all of them finished."""
    found = [
        {int(i): float(loss) for i, loss in map(str.split, path.read_text().splitlines())}
        for path in (file.with_name(f'{file.name}.{rank}') for rank in range(processes))
    ]
    return {i: sum(losses[i] for losses in found) / processes for i in found[0] if i in found[-1]}


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_two_processes_give_the_losses_of_one_and_resume(config, run, tmp_path, monkeypatch):
    (tmp_path / 'loss_writer.py').write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    path = config('segmentation', MORE)

    monkeypatch.setenv('LOSSES', str(tmp_path / 'one'))
    run('train', path, '--work-dir', 'one')
    one = read(tmp_path / 'one', 1)
    assert list(one) == list(range(EPOCHS * PER_EPOCH))

    def two(name: str, *options: str, **more: str) -> dict[int, float]:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        command = [REPOSITORY / 'tools/dist_train.sh', path, 2, '--work-dir', 'two', *options]
        command += ['--cfg-options', 'train_dataloader.batch_size=2']
        done = subprocess.run(
            [str(word) for word in command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            env={
                **os.environ,
                'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
                'PYTHONPATH': str(tmp_path),
                'OMP_NUM_THREADS': '1',
                'PORT': str(port),
                'LOSSES': str(tmp_path / name),
                **more,
            },
        )
        assert bool(done.returncode) == bool(more), done.stderr[-3000:]
        return read(tmp_path / name, 2)

    killed = two('killed', KILL_AT=str(KILLED_AT))
    resumed = two('resumed', '--resume')
    for losses in (killed, resumed):
        assert losses == pytest.approx({i: one[i] for i in losses}, rel=1e-5)
    # The kill is in the second epoch, which is begun again.
    assert list(killed)[: KILLED_AT - 1] == list(range(KILLED_AT - 1))
    assert list(resumed) == list(range(PER_EPOCH, EPOCHS * PER_EPOCH))
    assert resumed[PER_EPOCH] == killed[PER_EPOCH]
    assert len(set(one.values())) == len(one)
