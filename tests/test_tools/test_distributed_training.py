"""Two processes on CPUs train as one does, and go on after a kill."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mirrorla_mm.engine import load_checkpoint_file

from .conftest import REPOSITORY

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')

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
# depends on the images beside. The order of the images is shuffled.
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
SHARDED_CONFIG = Config.fromfile(
    REPOSITORY / 'configs/mask_rcnn/mask-rcnn_mirrorla-l_fpn_fsdp-bf16-1x_coco.py'
)
# mmengine would clip sharded gradients by the norm of each process's own part.
UNCLIPPED = 'optim_wrapper = dict(clip_grad=None)\n'
# The strategy of the sharded config.
SHARDED = f"""
runner_type = '{SHARDED_CONFIG.runner_type}'
strategy = {SHARDED_CONFIG.strategy.to_dict()}
env_cfg = dict()
"""


def read(file: Path, processes: int) -> dict[int, float]:
    """Losses by iteration, averaged over the processes; of iterations that all of them finished."""
    found = [
        {int(i): float(loss) for i, loss in map(str.split, path.read_text().splitlines())}
        for path in (file.with_name(f'{file.name}.{rank}') for rank in range(processes))
    ]
    return {i: sum(losses[i] for losses in found) / processes for i in found[0] if i in found[-1]}


@pytest.fixture()
def compared(config, run, tmp_path, monkeypatch) -> SimpleNamespace:
    """Losses by iteration of one process, or of two on half a batch each."""
    (tmp_path / 'loss_writer.py').write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)

    def one(more: str) -> dict[int, float]:
        monkeypatch.setenv('LOSSES', str(tmp_path / 'one'))
        run('train', config('segmentation', more), '--work-dir', 'one')
        losses = read(tmp_path / 'one', 1)
        assert list(losses) == list(range(EPOCHS * PER_EPOCH))
        assert len(set(losses.values())) == len(losses)
        return losses

    def two(more: str, name: str, *options: str, **environment: str) -> dict[int, float]:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        path = config('segmentation', more)
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
                **environment,
            },
        )
        assert bool(done.returncode) == bool(environment), done.stderr[-6000:]
        return read(tmp_path / name, 2)

    return SimpleNamespace(one=one, two=two)


@pytest.mark.slow
@pytest.mark.parametrize('more', ['', UNCLIPPED + SHARDED], ids=['data parallel', 'sharded'])
def test_two_processes_give_the_losses_of_one_and_resume(compared, tmp_path, more):
    one = compared.one(MORE + (UNCLIPPED if more else ''))
    killed = compared.two(MORE + more, 'killed', KILL_AT=str(KILLED_AT))
    resumed = compared.two(MORE + more, 'resumed', '--resume')
    for losses in (killed, resumed):
        assert losses == pytest.approx({i: one[i] for i in losses}, rel=1e-5)
    # The kill is in the second epoch, which is begun again.
    assert list(killed)[: KILLED_AT - 1] == list(range(KILLED_AT - 1))
    assert list(resumed) == list(range(PER_EPOCH, EPOCHS * PER_EPOCH))
    assert resumed[PER_EPOCH] == killed[PER_EPOCH]
    # A checkpoint of shards is one of whole weights, too.
    ours, theirs = (
        load_checkpoint_file(tmp_path / folder / f'epoch_{EPOCHS}.pth')['state_dict']
        for folder in ('one', 'two')
    )
    torch.testing.assert_close(dict(theirs), dict(ours), rtol=1e-3, atol=1e-5)
