"""Resuming: from the right checkpoint, at the right place, with nothing lost."""

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from mmengine.runner import find_latest_checkpoint as mmengine_latest
from torch.utils.data import DataLoader

from mirrorla_mm.engine.checkpoint import UnsafeCheckpointError
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.prepare import prepare_training
from mirrorla_mm.engine.resuming import find_latest_checkpoint
from tests import processes
from tests.noise_segmentation import config
from tests.strangers import Call

from . import toy
from .toy import Killed, LossRecorder, ToyData, ToyMetric, toy_runner, validation

# --- Several machines with disks of their own -----------------------------------------------------

LAUNCHED = """
import runpy, sys
from mmengine.config import Config
from mirrorla_mm.engine.checkpoint_fit import CheckpointFitHook
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.resuming import checkpoint_for_all

cfg = Config(dict(work_dir='run', launcher='pytorch'))
toy_runner = runpy.run_path(sys.argv[1])['toy_runner']
with one_line_errors():
    file = checkpoint_for_all(cfg)
    print('resumes from', file, flush=True)
    cfg.model_wrapper_cfg = dict(type='mirrorla_mm.CPUDistributedDataParallel')
    options = dict(max_iters=6, resume=True, load_from=file)
    runner = toy_runner('run', launcher='pytorch', cfg=cfg, **options)
    runner.register_hook(CheckpointFitHook(file))
    runner.train()
"""


@pytest.fixture()
def resumed_by_two(finished, tmp_path, monkeypatch):
    """Resume in two processes, each in a folder of its own; gives what they write and their end."""

    def run(change) -> list[tuple[str, int]]:
        for rank in (0, 1):
            shutil.copytree(finished, tmp_path / f'machine{rank}' / 'run')
        change(tmp_path / 'machine1' / 'run')
        (tmp_path / 'launched.py').write_text(LAUNCHED)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
        monkeypatch.setenv('MASTER_PORT', str(port))
        monkeypatch.setenv('WORLD_SIZE', '2')
        started = []
        for rank in (0, 1):
            monkeypatch.chdir(tmp_path / f'machine{rank}')
            for name in ('RANK', 'LOCAL_RANK'):
                monkeypatch.setenv(name, str(rank))
            log = tmp_path / f'{rank}.log'
            started.append(processes.start(log, tmp_path / 'launched.py', toy.__file__))
        for process in started:
            process.join(120)
            processes.kill(process)
        return [
            ((tmp_path / f'{rank}.log').read_text(), process.exitcode)
            for rank, process in enumerate(started)
        ]

    return run


def change_a_weight(work_dir: Path) -> None:
    checkpoint = torch.load(work_dir / 'iter_4.pth', weights_only=False)
    checkpoint['state_dict']['head.bias'] += 1
    torch.save(checkpoint, work_dir / 'iter_4.pth')


def lag_behind(work_dir: Path) -> None:
    shutil.copy(work_dir / 'iter_2.pth', work_dir / 'iter_4.pth')


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_processes_resume_from_the_checkpoint_of_the_first(resumed_by_two):
    def later(work_dir: Path) -> None:
        shutil.copy(work_dir / 'iter_4.pth', work_dir / 'iter_5.pth')
        (work_dir / 'last_checkpoint').unlink()

    for log, code in resumed_by_two(later):
        assert 'resumes from run/iter_4.pth' in log and code == 0, log


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
@pytest.mark.parametrize('change', [change_a_weight, lag_behind])
def test_checkpoints_that_differ_between_machines_end_the_resume(resumed_by_two, change):
    for log, code in resumed_by_two(change):
        assert code == 1 and 'run/iter_4.pth is not the same in all processes' in log, log


# --- From which checkpoint ------------------------------------------------------------------------


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    """The work dir of a run of four iterations, saved at the second and fourth."""
    folder = tmp_path_factory.mktemp('finished')
    toy_runner(folder, max_iters=4).train()
    return folder


@pytest.fixture()
def work_dir(finished, tmp_path) -> Path:
    """A copy of it, with a note of its own."""
    shutil.copytree(finished, tmp_path / 'run')
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'iter_4.pth'))
    return tmp_path / 'run'


def latest(work_dir: Path) -> str:
    return Path(find_latest_checkpoint(work_dir)).name


def test_latest_checkpoint_is_the_noted_one(work_dir, tmp_path):
    assert find_latest_checkpoint(tmp_path) is None
    assert find_latest_checkpoint(work_dir) == mmengine_latest(str(work_dir))
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_2.pth'))
    assert latest(work_dir) == 'iter_2.pth'


@pytest.mark.parametrize(
    'note', [b'', b'elsewhere/iter_99.pth', b'\xff\xfe\x00', b'a\x00b', b'.', None, 'link']
)
def test_torn_or_stale_note_falls_back_to_the_highest_number(work_dir, note):
    (work_dir / 'last_checkpoint').unlink()
    if note == 'link':
        (work_dir / 'last_checkpoint').symlink_to(work_dir / 'gone')
    elif note is not None:
        (work_dir / 'last_checkpoint').write_bytes(note)
    (work_dir / 'iter_4.pth').rename(work_dir / 'iter_10.pth')
    os.utime(work_dir / 'iter_10.pth', (1e9, 1e9))  # a copy has lost the order of times
    shutil.copy(work_dir / 'iter_2.pth', work_dir / 'iter_9.pth')
    shutil.copy(work_dir / 'iter_2.pth', work_dir / 'best_acc_iter_11.pth')
    (work_dir / 'iter_12.pth').symlink_to(work_dir / 'gone')
    assert latest(work_dir) == 'iter_10.pth'


def test_copied_folder_is_resumed_from_itself(work_dir, tmp_path):
    shutil.copytree(work_dir, tmp_path / 'copy')
    assert find_latest_checkpoint(tmp_path / 'copy') == str(tmp_path / 'copy' / 'iter_4.pth')


def cut(share: float):
    return lambda content: content[: int(share * len(content))]


DAMAGE = {
    'empty': cut(0),
    'a hundredth': cut(0.01),
    'half': cut(0.5),
    'nearly whole': cut(0.999),
    'zeros': lambda content: bytes(len(content)),
    'first half zero': lambda content: bytes(len(content) // 2) + content[len(content) // 2 :],
    'a hole': lambda content: content[:2000] + bytes(1500) + content[3500:],
}


@pytest.mark.parametrize('noted', (True, False))
@pytest.mark.parametrize('damage', DAMAGE)
def test_half_written_checkpoint_is_never_picked_up(work_dir, noted, damage):
    newest = work_dir / 'iter_4.pth'
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    (work_dir / 'iter_6.pth.0123abcd.partial').write_bytes(b'half')
    if not noted:
        (work_dir / 'last_checkpoint').unlink()
    assert latest(work_dir) == 'iter_2.pth'


@pytest.mark.parametrize('damage', DAMAGE)
def test_half_written_checkpoint_of_the_old_format_is_never_picked_up(work_dir, damage):
    newest = work_dir / 'iter_4.pth'
    weights = {'state_dict': {'weight': torch.arange(2000.0)}, 'meta': {}}
    torch.save(weights, newest, _use_new_zipfile_serialization=False)
    assert latest(work_dir) == 'iter_4.pth'
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    if damage != 'a hole':  # the old format has no checksums
        assert latest(work_dir) == 'iter_2.pth'


def test_hostile_checkpoint_is_not_passed_over(work_dir):
    torch.save({'state_dict': Call(os.mkdir, 'ran')}, work_dir / 'iter_4.pth')
    with pytest.raises(UnsafeCheckpointError):
        find_latest_checkpoint(work_dir)


@pytest.mark.parametrize('left', [True, False])
def test_prepared_config_resumes_from_what_can_be_read(work_dir, left):
    (work_dir / 'last_checkpoint').write_text('gone.pth')
    (work_dir / 'iter_4.pth').write_bytes(b'half')
    if not left:
        (work_dir / 'iter_2.pth').unlink()
    cfg = config(work_dir, work_dir, by_epoch=False, workers=0, seed=99)
    cfg.resume = True
    prepare_training(cfg)
    assert cfg.resume == left
    assert cfg.load_from == (str(work_dir / 'iter_2.pth') if left else None)
    assert (cfg.randomness.seed == 99) != left  # that of the checkpoint


# --- A validation that was cut off ----------------------------------------------------------------

BEST = {'save_best': 'acc'}
HOOKS = [{'type': 'mirrorla_mm.LostValidationHook'}]


class KilledMetric(ToyMetric):
    """Dies in the validation after so many."""

    def __init__(self, survived: int = 1) -> None:
        super().__init__([1])
        self.survived = survived

    def process(self, data_batch, data_samples):
        if self.validations == self.survived:
            raise Killed
        super().process(data_batch, data_samples)


def test_validation_that_a_kill_cut_off_is_done_after_resuming(tmp_path):
    options = {'checkpoint': BEST, 'hooks': HOOKS}
    with pytest.raises(Killed):
        toy_runner(tmp_path, **options, **validation(2, KilledMetric())).train()
    assert not (tmp_path / 'best_acc_iter_4.pth').exists()
    options |= {'resume': True, 'load_from': str(tmp_path / 'iter_4.pth')}
    metric = ToyMetric([2, 1])
    toy_runner(tmp_path, max_iters=6, **options, **validation(2, metric)).train()
    assert metric.validations == 2
    assert (tmp_path / 'best_acc_iter_4.pth').exists()
    assert not (tmp_path / 'best_acc_iter_2.pth').exists()
    # What was validated is not validated again, also where nothing is left to train.
    metric = ToyMetric([9])
    options['load_from'] = str(tmp_path / 'iter_6.pth')
    toy_runner(tmp_path, max_iters=6, **options, **validation(2, metric)).train()
    assert metric.validations == 0


def test_a_score_of_the_resumed_place_survives_another_kill(tmp_path):
    options = {'checkpoint': BEST, 'hooks': HOOKS}
    with pytest.raises(Killed):
        toy_runner(tmp_path, **options, **validation(2, KilledMetric())).train()
    options |= {'resume': True, 'load_from': str(tmp_path / 'iter_4.pth')}
    runner = toy_runner(tmp_path, **options, **validation(2, ToyMetric([2])))
    runner.register_hook(StopAt(5))
    with pytest.raises(Killed):
        runner.train()
    metric = ToyMetric([1.5])  # better than the first score, not than the one of the resumed place
    toy_runner(tmp_path, max_iters=6, **options, **validation(2, metric)).train()
    assert (tmp_path / 'best_acc_iter_4.pth').exists()
    assert not (tmp_path / 'best_acc_iter_6.pth').exists()


def test_a_fresh_start_forgets_what_an_earlier_run_validated(tmp_path):
    options = {'checkpoint': BEST, 'hooks': HOOKS}
    toy_runner(tmp_path, max_iters=4, **options, **validation(4, ToyMetric([1]))).train()
    with pytest.raises(Killed):
        toy_runner(tmp_path, **options, **validation(4, KilledMetric(0))).train()
    options |= {'resume': True, 'load_from': str(tmp_path / 'iter_4.pth')}
    metric = ToyMetric([1])
    toy_runner(tmp_path, max_iters=4, **options, **validation(4, metric)).train()
    assert metric.validations == 1


def test_note_of_another_run_is_not_believed(tmp_path):
    options = {'checkpoint': BEST, 'hooks': HOOKS}
    toy_runner(tmp_path / 'a', max_iters=4, **options, **validation(4, ToyMetric([1]))).train()
    with pytest.raises(Killed):
        toy_runner(tmp_path / 'b', **options, **validation(4, KilledMetric(0))).train()
    options |= {'resume': True, 'load_from': str(tmp_path / 'b' / 'iter_4.pth')}
    metric = ToyMetric([1])
    toy_runner(tmp_path / 'a', max_iters=4, **options, **validation(4, metric)).train()
    assert metric.validations == 1


def test_half_written_note_is_cleared_away(tmp_path):
    (tmp_path / 'last_validation.0123abcd.partial').touch()
    toy_runner(tmp_path, max_iters=1, hooks=HOOKS).train()
    assert not list(tmp_path.glob('*.partial'))


# --- The middle of an epoch -----------------------------------------------------------------------


class StopAt(LossRecorder):
    """Dies before an iteration, as the number of finished ones is this."""

    def __init__(self, finished: int) -> None:
        super().__init__()
        self.finished = finished

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.finished:
            raise Killed


def epochs(folder, batch_size: int = 4, hook=None, max_epochs: int = 2, **options) -> LossRecorder:
    """Epochs of 16 samples, saved after every iteration; schedules by iteration and epoch."""
    runner = toy_runner(folder, **{'checkpoint': {'interval': 1}, **options})
    runner._train_loop = {'type': 'mirrorla_mm.EpochBasedTrainLoop', 'max_epochs': max_epochs}
    if max_epochs > 2:  # mmengine counts the steps to accumulate by one length of all epochs
        runner.optim_wrapper['accumulative_counts'] = 1
    runner._train_dataloader = DataLoader(ToyData(), batch_size=batch_size)
    recorder = hook or LossRecorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder


@pytest.mark.parametrize('finished', [2, 4, 6, 8])
def test_run_goes_on_in_the_middle_of_an_epoch(tmp_path, finished):
    whole = epochs(tmp_path / 'whole')
    assert sorted(whole.losses) == list(range(8))
    hook = StopAt(finished)
    if finished < 8:
        with pytest.raises(Killed):
            epochs(tmp_path / 'part', hook=hook)
    else:
        epochs(tmp_path / 'part', hook=hook)
    path = str(tmp_path / 'part' / f'iter_{finished}.pth')
    resumed = epochs(tmp_path / 'part', resume=True, load_from=path)
    assert hook.losses | resumed.losses == whole.losses
    assert sorted(resumed.losses) == list(range(finished, 8))
    assert (tmp_path / 'part' / 'iter_8.pth').exists()
    assert not (tmp_path / 'part' / 'iter_9.pth').exists()


def test_middle_of_an_epoch_of_another_length_is_refused(tmp_path):
    epochs(tmp_path)
    path = str(tmp_path / 'iter_2.pth')
    with pytest.raises(UserError, match='middle of an epoch of 4 iterations, which now has 2'):
        epochs(tmp_path / 'new', batch_size=8, resume=True, load_from=path)


@pytest.mark.parametrize('before, now', [(4, 8), (8, 4)])
def test_epochs_of_another_length_after_the_end_of_one_are_trained_once(tmp_path, before, now):
    old, new = 16 // before, 16 // now
    with pytest.raises(Killed):
        epochs(tmp_path, before, StopAt(old + 1), max_epochs=4)
    hook = StopAt(old + new + 1)  # in the third epoch
    path = str(tmp_path / f'iter_{old}.pth')
    with pytest.raises(Killed):
        epochs(tmp_path, now, hook, max_epochs=4, resume=True, load_from=path)
    assert sorted(hook.losses) == list(range(old, old + new + 1))
    path = str(tmp_path / f'iter_{old + new + 1}.pth')
    rest = epochs(tmp_path, now, max_epochs=4, resume=True, load_from=path)
    assert sorted(rest.losses) == list(range(old + new + 1, old + 3 * new))


@pytest.mark.parametrize(
    'noted', [None, 'text', [0], [0, 'x'], [0, True], [0, -99], [0, 99], [7, 0], [[0], 1]]
)
def test_odd_note_of_where_an_epoch_began_skips_none(tmp_path, noted):
    with pytest.raises(Killed):
        epochs(tmp_path, hook=StopAt(3), max_epochs=3)
    checkpoint = torch.load(tmp_path / 'iter_3.pth', weights_only=False)
    checkpoint['message_hub']['runtime_info']['epoch_began'] = noted
    path = str(tmp_path / 'odd.pth')
    torch.save(checkpoint, path)
    losses = epochs(tmp_path, max_epochs=3, resume=True, load_from=path).losses
    assert set(range(3, 12)) <= losses.keys()


def test_lost_validation_is_found_after_epochs_of_another_length(tmp_path):
    options = {'hooks': HOOKS, 'checkpoint': {'interval': 1, 'by_epoch': True}, 'max_epochs': 3}
    with pytest.raises(Killed):
        epochs(tmp_path, 4, StopAt(4), **options)
    options |= {'resume': True, 'load_from': str(tmp_path / 'epoch_1.pth')}
    with pytest.raises(Killed):  # validates the first epoch, dies in that of the second
        epochs(tmp_path, 8, **options, **validation(1, KilledMetric(1)))
    options['load_from'] = str(tmp_path / 'epoch_2.pth')
    metric = ToyMetric([1])
    epochs(tmp_path, 8, **options, **validation(1, metric))
    assert metric.validations == 2
