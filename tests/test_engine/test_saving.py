"""Saving and resuming: an interruption leaves whole files, and a resumed run is the same run."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner import find_latest_checkpoint as mmengine_latest

from mirrorla_mm.engine.checkpoint import CheckpointError, load_checkpoint_file
from mirrorla_mm.engine.checkpoint_fit import CheckpointFitHook, check_fit
from mirrorla_mm.engine.saving import (
    AtomicLocalBackend,
    SafeCheckpointHook,
    find_latest_checkpoint,
)

from .toy import LossRecorder, ToyModel, toy_runner


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth*'))


def train(runner: Runner) -> LossRecorder:
    recorder = LossRecorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder


def test_resumed_run_is_the_undisturbed_run(tmp_path):
    whole = train(toy_runner(tmp_path))
    final = load_checkpoint_file(tmp_path / 'iter_8.pth')
    (tmp_path / 'part').mkdir()
    resumed = train(
        toy_runner(tmp_path / 'part', resume=True, load_from=str(tmp_path / 'iter_4.pth'))
    )
    assert resumed.losses == {step: whole.losses[step] for step in (4, 5, 6, 7)}
    again = load_checkpoint_file(tmp_path / 'part' / 'iter_8.pth')
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, again[part][key]) for key, value in final[part].items())
    for key, value in final['optimizer']['state'].items():
        for name, tensor in value.items():
            assert torch.equal(tensor, again['optimizer']['state'][key][name])
    assert final['param_schedulers'] == again['param_schedulers']
    history = [c['message_hub']['log_scalars']['train/loss'].data[0] for c in (final, again)]
    assert (history[0] == history[1]).all()


def test_publishing_reads_the_checkpoint_back(tmp_path):
    train(toy_runner(tmp_path, max_iters=2, checkpoint={'published_keys': ['state_dict']}))
    published = list(tmp_path.glob('iter_2-*.pth'))
    assert load_checkpoint_file(published[0]).keys() == {'state_dict'}


def test_killed_run_leaves_whole_checkpoints_and_resumes(tmp_path):
    code = (
        'import sys, mirrorla_mm\n'
        'from test_engine.toy import toy_runner\n'
        'toy_runner(sys.argv[1], max_iters=100000, checkpoint={"interval": 1}).train()\n'
    )
    tests = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path)],
        env={**os.environ, 'PYTHONPATH': f'{tests.parent}{os.pathsep}{tests}'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / 'iter_3.pth').exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for path in tmp_path.glob('iter_*.pth'):
        load_checkpoint_file(path)
    latest = find_latest_checkpoint(tmp_path)
    done = load_checkpoint_file(latest)['meta']['iter']
    resumed = train(toy_runner(tmp_path, max_iters=done + 2, resume=True, load_from=latest))
    assert sorted(resumed.losses) == [done, done + 1]


# --- Files ----------------------------------------------------------------------------------------


def test_mmengine_uses_the_atomic_backend_and_the_safe_hook():
    assert isinstance(get_file_backend('some/path'), AtomicLocalBackend)
    assert isinstance(get_file_backend(backend_args={'backend': 'local'}), AtomicLocalBackend)
    assert HOOKS.get('CheckpointHook') is SafeCheckpointHook


def test_file_that_does_not_fit_the_disk_leaves_the_old_one(tmp_path):
    path = tmp_path / 'a.pth'
    AtomicLocalBackend().put(b'old', path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'a\.pth cannot be written'):
            AtomicLocalBackend().put(b'x' * 5000, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b'old'
    assert checkpoints(tmp_path) == ['a.pth']


def test_put_follows_links_makes_folders_and_spares_devices(tmp_path):
    (tmp_path / 'real').write_bytes(b'old')
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    backend = AtomicLocalBackend()
    backend.put(b'new', tmp_path / 'link')
    backend.put(b'deep', tmp_path / 'a' / 'b' / 'c')
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    backend.put(b'pipe', tmp_path / 'pipe')
    assert os.read(reader, 9) == b'pipe'
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'real').read_bytes() == b'new'
    assert (tmp_path / 'a' / 'b' / 'c').read_bytes() == b'deep'


@pytest.mark.parametrize('keep, expected', [(1, [8]), (2, [6, 8]), (-1, [2, 4, 6, 8])])
def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path, keep, expected):
    train(toy_runner(tmp_path, checkpoint={'max_keep_ckpts': keep}))
    assert checkpoints(tmp_path) == [f'iter_{step}.pth' for step in expected]


def test_resuming_keeps_as_many(tmp_path):
    options = {'max_keep_ckpts': 1}
    train(toy_runner(tmp_path, max_iters=4, checkpoint=options))
    latest = find_latest_checkpoint(tmp_path)
    train(toy_runner(tmp_path, checkpoint=options, resume=True, load_from=latest))
    assert checkpoints(tmp_path) == ['iter_8.pth']


def test_full_disk_stops_with_the_last_usable_checkpoint(tmp_path, monkeypatch):
    put = AtomicLocalBackend.put

    def full_at_six(self, obj, filepath):
        if str(filepath).endswith('iter_6.pth'):
            raise OSError(errno.ENOSPC, 'No space left on device')
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', full_at_six)
    runner = toy_runner(tmp_path, checkpoint={'max_keep_ckpts': 1})
    with pytest.raises(CheckpointError, match=r'step 6 .*No space left.*iter_4\.pth'):
        runner.train()
    latest = find_latest_checkpoint(tmp_path)
    assert Path(latest).name == 'iter_4.pth'
    monkeypatch.undo()
    resumed = train(toy_runner(tmp_path, resume=True, load_from=latest))
    assert sorted(resumed.losses) == [4, 5, 6, 7]


# --- Which checkpoint to resume from --------------------------------------------------------------


def test_latest_checkpoint_is_the_noted_one(tmp_path):
    assert find_latest_checkpoint(tmp_path) is None
    train(toy_runner(tmp_path, max_iters=4))
    assert find_latest_checkpoint(tmp_path) == mmengine_latest(str(tmp_path))


@pytest.mark.parametrize('note', ['', 'elsewhere/iter_9.pth', None])
def test_torn_or_stale_note_falls_back_to_the_newest(tmp_path, note):
    for age, step in enumerate((10, 9, 8)):
        path = tmp_path / f'iter_{step}.pth'
        path.write_bytes(b'whole')
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / 'best_mIoU.pth').touch()
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    expected = 'iter_9.pth' if note else 'iter_10.pth'  # a moved folder still has the noted name
    assert Path(find_latest_checkpoint(tmp_path)).name == expected


@pytest.mark.parametrize('noted', (True, False))
@pytest.mark.parametrize('share', (0, 0.01, 0.5, 0.999))
def test_half_written_checkpoint_is_never_picked_up(tmp_path, noted, share):
    train(toy_runner(tmp_path, max_iters=4, checkpoint={'interval': 2}))
    newest = tmp_path / 'iter_4.pth'
    assert find_latest_checkpoint(tmp_path) == str(newest)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(share * len(content))])
    (tmp_path / 'iter_6.pth.partial').write_bytes(content[:999])
    if not noted:
        (tmp_path / 'last_checkpoint').unlink()
    latest = find_latest_checkpoint(tmp_path)
    assert Path(latest).name == 'iter_2.pth'
    assert sorted(train(toy_runner(tmp_path, resume=True, load_from=latest)).losses)[0] == 2


# --- Fit ------------------------------------------------------------------------------------------


def test_fitting_checkpoint_is_loaded():
    source, model = ToyModel(), ToyModel()
    state = {f'module.{key}': value for key, value in source.state_dict().items()}
    check_fit(model, {'state_dict': {**state, 'auxiliary': torch.ones(1)}}, 'a.pth')
    assert torch.equal(model.head.weight, source.head.weight)


@pytest.mark.parametrize(
    'checkpoint, message',
    [
        (
            {'state_dict': ToyModel(5).state_dict()},
            r'norm\.weight has the shape \[5\] there and \[4\]',
        ),
        ({'state_dict': {'other': torch.ones(1)}}, r'4 of the 4 parameters .*norm\.weight.*other'),
        ({'state_dict': ToyModel().norm.state_dict()}, 'of another model'),
        ({'state_dict': {}}, 'holds no weights'),
        ([1], 'holds no weights'),
    ],
)
def test_other_models_checkpoint_is_refused(checkpoint, message):
    with pytest.raises(CheckpointError, match=rf'a\.pth .*{message}'):
        check_fit(ToyModel(), checkpoint, 'a.pth')


def test_resuming_from_bare_weights_says_what_to_do(tmp_path):
    path = str(tmp_path / 'weights.pth')
    torch.save({'state_dict': ToyModel().state_dict(), 'meta': {}}, path)
    runner = toy_runner(tmp_path, resume=True, load_from=path)
    runner.register_hook(CheckpointFitHook(path))
    with pytest.raises(CheckpointError, match=r'weights\.pth .*load_from'):
        runner.train()
