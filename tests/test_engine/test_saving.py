"""Saving: an interruption leaves whole files, and nothing but the run's own is deleted."""

import errno
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mirrorla_mm.engine import work_dir
from mirrorla_mm.engine.checkpoint import CheckpointError, load_checkpoint_file
from mirrorla_mm.engine.checkpoint_fit import CheckpointFitHook, check_fit
from mirrorla_mm.engine.resuming import find_latest_checkpoint
from tests import processes

from .toy import LossRecorder, ToyMetric, ToyModel, toy_runner, validation


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
    script = tmp_path / 'train.py'
    script.write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(processes.TESTS)!r})\n'
        'from test_engine.toy import toy_runner\n'
        'toy_runner(sys.argv[1], max_iters=100000, checkpoint={"interval": 1}).train()\n'
    )
    process = processes.start(tmp_path / 'log', script, tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / 'iter_3.pth').exists():
            assert process.is_alive() and time.monotonic() < deadline, (
                tmp_path / 'log'
            ).read_text()
            time.sleep(0.01)
    finally:
        processes.kill(process)
    for path in tmp_path.glob('iter_*.pth'):
        load_checkpoint_file(path)
    latest = find_latest_checkpoint(tmp_path)
    done = load_checkpoint_file(latest)['meta']['iter']
    resumed = train(toy_runner(tmp_path, max_iters=done + 2, resume=True, load_from=latest))
    assert sorted(resumed.losses) == [done, done + 1]


# --- Which files are kept -------------------------------------------------------------------------


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


@pytest.fixture()
def disk(monkeypatch) -> set[str]:
    """Names of files that no longer fit the disk."""
    full: set[str] = set()
    replace = Path.replace

    def replace_unless_full(self, target):
        if Path(target).name in full:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return replace(self, target)

    monkeypatch.setattr(Path, 'replace', replace_unless_full)
    return full


def test_full_disk_stops_with_the_last_usable_checkpoint(tmp_path, disk):
    disk.add('iter_6.pth')
    runner = toy_runner(tmp_path, checkpoint={'max_keep_ckpts': 1})
    with pytest.raises(CheckpointError, match=r'step 6 .*No space left.*iter_4\.pth'):
        runner.train()
    latest = find_latest_checkpoint(tmp_path)
    assert Path(latest).name == 'iter_4.pth'
    # Nothing has been saved since, but there is one.
    again = toy_runner(tmp_path, resume=True, load_from=latest)
    with pytest.raises(CheckpointError, match=r'step 6 .*No space left.*iter_4\.pth'):
        again.train()
    disk.clear()
    resumed = train(toy_runner(tmp_path, resume=True, load_from=latest))
    assert sorted(resumed.losses) == [4, 5, 6, 7]


BEST = {'save_best': 'acc', 'max_keep_ckpts': 1}


def test_best_checkpoint_is_deleted_once_the_better_one_is_there(tmp_path, disk):
    metric = ToyMetric([1, 2, 0, 3])
    train(toy_runner(tmp_path, checkpoint=BEST, **validation(2, metric)))
    assert checkpoints(tmp_path) == ['best_acc_iter_8.pth', 'iter_8.pth']
    disk.add('best_acc_iter_4.pth')
    runner = toy_runner(tmp_path / 'full', checkpoint=BEST, **validation(2, ToyMetric([1, 2])))
    with pytest.raises(CheckpointError, match=r'best checkpoint was not saved \(.*iter_4\.pth'):
        runner.train()
    assert checkpoints(tmp_path / 'full') == ['best_acc_iter_2.pth', 'iter_4.pth']


def test_best_of_several_metrics_and_after_a_resume_in_another_folder(tmp_path):
    options = {'save_best': ['acc', 'toy/acc'], 'rule': ['greater', 'less']}
    metrics = [ToyMetric([1, 2, 1, 3]), ToyMetric([1, 2, 0, 3])]
    metrics[1].prefix = 'toy'
    both = validation(2, *metrics)
    train(toy_runner(tmp_path / 'old', max_iters=4, checkpoint=options, **both))
    best = ['best_acc_iter_4.pth', 'best_toy_acc_iter_2.pth']
    assert [name for name in checkpoints(tmp_path / 'old') if 'best' in name] == best
    (tmp_path / 'old').rename(tmp_path / 'new')
    latest = find_latest_checkpoint(tmp_path / 'new')
    train(toy_runner(tmp_path / 'new', checkpoint=options, resume=True, load_from=latest, **both))
    best = ['best_acc_iter_8.pth', 'best_toy_acc_iter_6.pth']
    assert [name for name in checkpoints(tmp_path / 'new') if 'best' in name] == best


@pytest.mark.parametrize('kind', ['file', 'folder', 'another name'])
def test_checkpoint_cannot_have_files_of_others_deleted(tmp_path, kind):
    train(
        toy_runner(tmp_path / 'run', max_iters=4, checkpoint=BEST, **validation(2, ToyMetric([1])))
    )
    victim = tmp_path / ('new/notes.pth' if kind == 'another name' else 'best_acc_iter_2.pth')
    victim.parent.mkdir(exist_ok=True)
    if kind == 'folder':
        victim.mkdir()
    else:
        victim.touch()
    hostile = load_checkpoint_file(tmp_path / 'run' / 'iter_4.pth')
    hub = hostile['message_hub']
    hub['runtime_info'].update(
        best_ckpt=str(victim),
        best_score=-1,
        keep_ckpt_ids=['../../best_acc_iter_2', 1, 2, 3],
        last_ckpt=str(victim),
    )
    for key in ('best_ckpt', 'best_score', 'keep_ckpt_ids', 'last_ckpt'):
        hub['resumed_keys'][key] = True
    torch.save(hostile, tmp_path / 'hostile.pth')
    load_from = str(tmp_path / 'hostile.pth')
    metric = ToyMetric([1, 2, 3])
    options = {'resume': True, 'load_from': load_from, **validation(2, metric)}
    train(toy_runner(tmp_path / 'new', checkpoint=BEST, **options))
    assert metric.validations and victim.exists() and Path(load_from).exists()
    kept = set(checkpoints(tmp_path / 'new')) - {'notes.pth'}
    assert kept == {'best_acc_iter_8.pth', 'iter_8.pth'}


def test_what_a_killed_run_left_half_written_is_cleared_away(tmp_path):
    left = ['iter_6.pth.0123abcd.partial', 'best_acc_iter_4.pth.0123abcd.partial']
    for name in (*left, 'thesis.pth.0123abcd.partial'):
        (tmp_path / name).touch()
    train(toy_runner(tmp_path, max_iters=2))
    assert checkpoints(tmp_path) == ['iter_2.pth', 'thesis.pth.0123abcd.partial']


class OwnSave(Hook):
    """Saves after the third iteration, as a hook of a user does."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 2:
            runner.save_checkpoint(runner.work_dir, 'own.pth', by_epoch=False)


def test_save_of_a_user_keeps_its_own_place(tmp_path):
    train(toy_runner(tmp_path, max_iters=4, hooks=[OwnSave()]))
    assert load_checkpoint_file(tmp_path / 'own.pth')['meta']['iter'] == 3


class HeldFolders(Hook):
    """Notes which folders training holds."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.held = set(work_dir._held)


def test_folder_of_the_checkpoints_is_held_while_training(tmp_path):
    holder = HeldFolders()
    out_dir = str(tmp_path / 'out')
    train(toy_runner(tmp_path / 'a/run', checkpoint={'out_dir': out_dir}, hooks=[holder]))
    assert {tmp_path / 'a/run', tmp_path / 'out/run'} <= holder.held
    assert not {tmp_path / 'a/run', tmp_path / 'out/run'} & set(work_dir._held)


def test_numbers_of_a_width_of_their_own_are_the_hooks_files(tmp_path):
    options = {'filename_tmpl': 'step_{:03d}.pth', 'max_keep_ckpts': 1}
    (tmp_path / 'step_001.pth.0123abcd.partial').touch()
    train(toy_runner(tmp_path, checkpoint=options))
    assert checkpoints(tmp_path) == ['step_008.pth']


def test_checkpoint_keeps_its_permissions(tmp_path):
    train(toy_runner(tmp_path, max_iters=2))
    (tmp_path / 'iter_2.pth').chmod(0o600)
    train(toy_runner(tmp_path, max_iters=2))
    assert (tmp_path / 'iter_2.pth').stat().st_mode & 0o777 == 0o600


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
        ({'state_dict': {'other': torch.ones(1)}}, r'6 of the 6 parameters .*norm\.weight.*other'),
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
