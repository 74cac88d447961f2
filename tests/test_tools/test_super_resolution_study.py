"""The command of the super-resolution study, at toy size."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mirrorla_mm.converters import official_dctlsa
from tests.test_restoration.toy import TOY, toy_host, write_benchmark

ROOT = Path(__file__).resolve().parents[2]
STUDY = 'studies/super_resolution'
UNTOUCHED = ('--work-dir', 'untouched', '--report', 'untouched')
ELSEWHERE = ('--work-dir', 'elsewhere', '--report', 'elsewhere')
STILL = ('optim_wrapper.optimizer.lr=0', 'param_scheduler.eta_min=0')


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """A toy host at x2, four iterations, drawn images."""
    write_benchmark(tmp_path / 'first', [(32, 40), (12, 12)])
    write_benchmark(tmp_path / 'second', [(33, 47)])
    cfg = Config.fromfile(ROOT / 'configs/studies/dctlsa-study_x4_1xb4-3k_coco.py')
    cfg.model.backbone.update(TOY, upscale=2)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.train_dataloader.dataset.update(scale=2, filter_cfg=dict(min_size=16))
    cfg.train_dataloader.dataset.pipeline[1].size = 8
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=2)
    cfg.optim_wrapper.optimizer.lr = 1e-2
    cfg.dump(tmp_path / 'toy.py')
    torch.save(official_dctlsa(toy_host(num_groups=2).state_dict()), tmp_path / 'x2.pt')
    return [
        *('--config', 'toy.py', '--train', 'first/HR', 'second/HR', '--iters', '4'),
        *('--test', 'Whole=first/HR', 'Middle=second/HR:16x32'),
        *('--work-dir', 'work', '--report', 'report'),
    ]


def results() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in Path('report/runs').iterdir()}


def weights(row: str, name: str = 'iter_4.pth') -> dict:
    return torch.load(f'work/{row}/seed-0/{name}', weights_only=False)['state_dict']


@pytest.mark.slow
def test_rows_are_trained_tested_resumed_and_compared(run, arguments, capsys):
    rows = ['--rows', 'relu', 'mirror', 'random-mirror']
    run(STUDY, 'x2.pt', *arguments, *rows, '--seeds', '0', '--bf16')
    before = results()
    assert sorted(before) == [f'{row}_seed-0' for row in ('mirror', 'random-mirror', 'relu')]
    assert {len(r['PSNR']['Whole']) for r in before.values()} == {2}
    assert all({'machine', 'date', 'commit'} <= r.keys() for r in before.values())
    assert before['relu_seed-0']['settings']['test'] == {'Whole': None, 'Middle': [16, 32]}
    angles = 'backbone.groups.0.0.blocks.0.attn.reflection.theta'
    moved = {
        row: not torch.equal(weights(row)[angles], weights(row, 'start.pth')[angles])
        for row in ('mirror', 'random-mirror')
    }
    assert moved == {'mirror': True, 'random-mirror': False}
    stem = 'backbone.stem.weight'
    starts = [weights(row, 'start.pth')[stem] for row in ('relu', 'mirror')]
    assert torch.equal(*starts) and not torch.equal(starts[0], weights('relu')[stem])
    # A run that was stopped half-way gives what an undisturbed one gives.
    Path('report/runs/mirror_seed-0.json').unlink()
    Path('work/mirror/seed-0/iter_4.pth').unlink()
    Path('work/mirror/seed-0/last_checkpoint').unlink()
    capsys.readouterr()
    run(STUDY, 'x2.pt', *arguments, *rows, '--seeds', '0', '--bf16')
    said = capsys.readouterr().out
    assert said.count('done before') == 2 and '| ReLU + mirror | 1 |' in said
    again = results()
    for key in ('PSNR', 'dead', 'rank', 'settings'):
        assert again['mirror_seed-0'][key] == before['mirror_seed-0'][key]
    title, table = Path('report/results.md').read_text().split('\n\n', 1)
    assert title.startswith('# ') and table in said
    assert Path('report/results.png').stat().st_size > 1000


@pytest.mark.slow
def test_without_weights_all_rows_of_a_seed_start_from_one_host(run, arguments):
    more = ['--rows', 'relu', 'nala', '--seeds', '0']
    run(STUDY, *arguments, *more, '--cfg-options', *STILL)
    first, second = map(weights, ('relu', 'nala'))
    assert 'backbone.groups.0.0.blocks.0.attn.lepe.weight' in second.keys() - first.keys()
    shared = [
        key
        for key in first.keys() & second.keys()
        if 'running_' not in key and first[key].shape == second[key].shape
    ]
    assert len(shared) > 50 and all(torch.equal(first[key], second[key]) for key in shared)
    assert results()['relu_seed-0']['settings']['start'] == 'random'


@pytest.mark.slow
def test_attentions_learn_from_the_authors_before_the_host_goes_on(run, arguments):
    rows = ['--rows', 'random-mirror', 'lsa', '--seeds', '0', '--transfer', '4']
    run(STUDY, 'x2.pt', *arguments, *rows)
    assert not Path('work/lsa/seed-0/transfer').exists()
    found = results()
    authors, new = (found[f'{row}_seed-0'] for row in ('lsa', 'random-mirror'))
    assert authors['transfer']['explained'] == 1 > new['transfer']['explained']
    assert new['settings']['transfer'] == 4
    assert new['transfer']['PSNR']['Whole'] != new['PSNR']['Whole']
    first, learned = (weights('random-mirror', f'{part}start.pth') for part in ('transfer/', ''))
    moved = {k for k, v in learned.items() if not torch.equal(v, first[k])}
    assert moved and all('.attn.' in key and '.reflection.' not in key for key in moved)
    page = Path('report/results.md').read_text()
    assert (
        page.index('## After the transfer')
        < page.index('| explained |')
        < page.index('## At the end')
    )
    assert Path('report/after_transfer.png').stat().st_size > 1000
    # A transfer that was stopped half-way gives what an undisturbed one gives.
    Path('report/runs/random-mirror_seed-0.json').unlink()
    for file in ('start.pth', 'last_checkpoint', 'iter_2.pth', 'iter_4.pth'):
        Path(f'work/random-mirror/seed-0/{file}').unlink()
    Path('work/random-mirror/seed-0/transfer/iter_4.pth').unlink()
    Path('work/random-mirror/seed-0/transfer/last_checkpoint').unlink()
    run(STUDY, 'x2.pt', *arguments, *rows)
    again = results()['random-mirror_seed-0']
    assert again['PSNR'] == new['PSNR'] and again['transfer'] == new['transfer']


def test_mistakes_are_said_in_a_sentence(run, arguments, capsys):
    few = ['--rows', 'relu', '--seeds', '0']
    run(STUDY, 'x2.pt', *arguments, *few)
    Path('work/study.json').unlink()  # as a version without it left the folder
    run(STUDY, 'x2.pt', *arguments, *few)
    assert json.loads(Path('work/study.json').read_text()) == results()['relu_seed-0']['settings']
    for more, message in (
        (
            [*arguments, *few, '--iters', '5'],
            'relu_seed-0.json holds results of other settings (iters 4',
        ),
        (
            [*arguments, *few, '--iters', '5', '--report', 'new'],
            'work holds results of other settings (iters 4, not 5)',
        ),
        (
            [*arguments, *few, '--cfg-options', 'model.backbone.num_heads=1'],
            'relu_seed-0.json holds results of other settings (config ',
        ),
        ([*arguments, *few, '--test', 'Set5'], 'NAME=FOLDER'),
        ([*arguments, *few, *UNTOUCHED, '--test', 'Set5=nowhere'], 'nowhere does not exist'),
        ([*arguments, *few, *UNTOUCHED, '--iters', '0'], "--iters: '0' is no whole number"),
        ([*few], '--train and --test are needed'),
        (
            [*arguments, *few, *ELSEWHERE, '--cfg-options', 'optim_wrapper.optimizer.lr=1e30'],
            'ReLU, seed 0: the loss is',
        ),
        (['--report-only', '--report', 'empty'], 'No finished run'),
        (
            [*arguments, '--transfer', '4', '--rows', 'relu', 'softmax-w32'],
            'those of softmax-w32 are 32, not a part of 8',
        ),
        (
            [*arguments, '--rows', 'elu', '--train', 'nowhere'],
            "(train ['HR', 'HR'], not ['nowhere'])",
        ),
    ):
        with pytest.raises(SystemExit):
            run(STUDY, 'x2.pt', *more)
        assert message in capsys.readouterr().err
    assert not Path('untouched').exists()
    torch.save(official_dctlsa(toy_host(num_groups=2).state_dict()), 'other.pt')
    for weights, more, message in (
        ('other.pt', [], 'relu_seed-0.json holds results of other settings (weights '),
        ('nowhere.pt', [], 'nowhere.pt'),
        (None, ['--transfer', '4', *ELSEWHERE], "--transfer needs the authors' weights"),
        ('x2.pt', ['--transfer', '-4'], '--transfer takes a number of iterations, not -4'),
    ):
        with pytest.raises(SystemExit):
            run(STUDY, *([weights] if weights else []), *arguments, *few, *more)
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_torch_that_cannot_round_factors_trains_without(run, arguments, capsys, monkeypatch):
    few = ['--rows', 'relu', '--seeds', '0']
    monkeypatch.delattr(type(torch.backends.mkldnn), 'matmul')
    with pytest.raises(SystemExit):
        run(STUDY, 'x2.pt', *arguments, *few, *ELSEWHERE, '--bf16')
    assert '--bf16 needs torch 2.9 or newer' in capsys.readouterr().err
    run(STUDY, 'x2.pt', *arguments, *few)
    assert results()['relu_seed-0']['settings']['products'] == 'float32'


def test_runs_whose_own_parameters_were_alike_for_all_seeds_stay_alone(run, arguments, capsys):
    cfg = Config.fromfile('toy.py')
    content = dict(row='relu', seed=0, settings=dict(start='authors', iters=4, batch=2, crop=8))
    content['settings'].update(lr=cfg.optim_wrapper.optimizer.lr, products='float32')
    content['settings'].update(train=['HR', 'HR'], test={'Whole': None, 'Middle': [16, 32]})
    Path('report/runs').mkdir(parents=True)
    Path('report/runs/relu_seed-0.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        run(STUDY, 'x2.pt', *arguments, '--rows', 'relu', '--seeds', '1')
    said = capsys.readouterr().err
    assert 'relu_seed-0.json was written by an earlier version' in said
    assert 'name another --report' in said
