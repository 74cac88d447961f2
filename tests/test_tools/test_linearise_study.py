"""The study of linearising: its parts are made once, and its report says what they hold."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mirrorla_mm.demo.dataset import VERSION

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = 'configs/studies/linearise-study_efficientvit-head_1xb4-8e_demo-96x96.py'
LAYERS = ('stages.2.0.attn', 'stages.3.0.attn')


def errors(first, second):
    return dict(zip(LAYERS, (first, second)))


# Two seeds of one arm with parameters of its own, one seed of one without.
RESULTS = {
    'softmax teacher/0': dict(mIoU=dict(trained=70.0)),
    'softmax teacher/1': dict(mIoU=dict(trained=74.0)),
    'softmax, trained on/0': dict(mIoU={'trained on': 75.0}),
    'mirror/0': dict(
        mIoU={'copied': 60.0, 'transferred': 66.0, 'fine-tuned': 71.0},
        errors=dict(copied=errors(0.4, 0.2), transferred=errors(0.1, 0.05)),
    ),
    'mirror/1': dict(
        mIoU={'copied': 64.0, 'transferred': 66.0, 'fine-tuned': 73.0},
        errors=dict(copied=errors(0.2, 0.4), transferred=errors(0.3, 0.05)),
    ),
    'mirror, without transfer/0': dict(mIoU={'without transfer': 72.0}),
    'mirror, from scratch/0': dict(mIoU={'from scratch': 40.0}),
    'ReLU/0': dict(
        mIoU={'copied': 50.0, 'without transfer': 68.0}, errors=dict(copied=errors(0.5, 0.6))
    ),
    'ReLU, without transfer/0': dict(mIoU={}),
}


def test_the_report_averages_over_the_seeds_and_leaves_out_what_there_is_not(run, capsys):
    Path('work').mkdir()
    Path('work/results.json').write_text(json.dumps(RESULTS))
    run('studies/linearise', '--work-dir', 'work', '--report', 'report', '--report-only')
    text = Path('report/results.md').read_text()
    assert text in capsys.readouterr().out
    rows = {line.split('|')[1].strip(): line for line in text.splitlines() if line.startswith('|')}
    assert rows['ReLU'].split('|')[2:8] == [' 50.00 ', ' - ', ' - ', ' 68.00 ', ' - ', ' 1 ']
    cells = [cell.strip() for cell in rows['mirror'].split('|')[2:8]]
    assert cells[0].startswith('62.00 ± ') and cells[1] == '66.00 ± 0.00'
    assert cells[3:] == ['72.00', '40.00', '2']
    assert 'NP-Map' not in text
    assert rows['mirror, copied'].endswith('| 0.300 | 0.300 |')
    assert rows['mirror, transferred'].endswith('| 0.200 | 0.050 |')
    assert 'softmax teacher (trained): mIoU 72.00 ± ' in text
    assert 'softmax, trained on (trained on): mIoU 75.00.' in text
    assert json.loads(Path('report/results.json').read_text()) == RESULTS
    assert 'What follows ± is the standard deviation' in text
    assert Path('report/results.png').read_bytes().startswith(b'\x89PNG')


def test_layers_that_are_exact_do_not_flatten_the_others(run, monkeypatch):
    exact = {
        **RESULTS,
        'STILL/0': dict(mIoU=dict(copied=7.0), errors=dict(copied=errors(0.2, 1e-13))),
    }
    Path('work').mkdir()
    Path('work/results.json').write_text(json.dumps(exact))
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: drawn.append(figure))
    run('studies/linearise', '--work-dir', 'work', '--report', 'report', '--report-only')
    right = drawn[0].axes[1]
    assert right.get_ylim()[0] == 1e-3 and 'from 0.001 on' in right.get_title()
    assert right.get_xlabel() == 'layer' and right.get_ylabel() == 'squared error over power'


@pytest.mark.slow
def test_each_part_is_made_once_and_with_one_set_of_settings(run, capsys, monkeypatch):
    monkeypatch.delenv('MIRRORLA_DEMO_DATA', raising=False)
    command = ('studies/linearise', '--config', REPOSITORY / CONFIG, '--work-dir', 'work')
    command += ('--seeds', 0, '--arms', 'mirror', '--scenes', 4, 2, '--teacher-iters', 1)
    run(*command, '--iters', 1)
    results = json.loads(Path('work/results.json').read_text())
    assert list(results) == [
        'softmax teacher/0',
        'mirror/0',
        'softmax, trained on/0',
        'mirror, from scratch/0',
        'mirror, without transfer/0',
    ]
    assert list(results['mirror/0']['mIoU']) == ['copied', 'transferred', 'fine-tuned']
    assert all(0 <= v <= 100 for part in results.values() for v in part['mIoU'].values())
    assert list(results['mirror/0']['errors']['copied']) == ['stages.2.0.attn', 'stages.2.1.attn',
                                                             'stages.3.0.attn']  # fmt: skip
    assert capsys.readouterr().out.count(' s\n') == 5
    run(*command, '--iters', 1)
    assert ' s\n' not in capsys.readouterr().out
    assert json.loads(Path('work/results.json').read_text()) == results
    with pytest.raises(SystemExit):
        run(*command, '--iters', 2)
    assert 'error: work holds results of other settings (iters [1,' in capsys.readouterr().err


@pytest.fixture()
def settings(monkeypatch):
    """Settings of the study by its command line."""
    path = REPOSITORY / 'tools/studies/linearise.py'
    spec = importlib.util.spec_from_file_location('linearise_study', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def of(*command):
        monkeypatch.setattr('sys.argv', [str(path), *map(str, command)])
        return module.Study(module.parse_args()).settings

    return of


def test_a_study_is_of_what_its_config_says_wherever_that_lies(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv('MIRRORLA_DEMO_DATA', raising=False)
    first = settings('--config', CONFIG)
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', 'elsewhere')
    own = tmp_path / 'own.py'
    own.write_text(f"_base_ = ['{REPOSITORY / CONFIG}']\n")
    assert settings('--config', own) == first
    assert os.environ['MIRRORLA_DEMO_DATA'] == 'elsewhere'
    assert str(tmp_path) not in json.dumps(first) and CONFIG not in json.dumps(first)
    own.write_text(
        f"_base_ = ['{REPOSITORY / CONFIG}']\noptim_wrapper = dict(optimizer=dict(lr=1))\n"
    )
    assert settings('--config', own)['config'] != first['config']


def test_a_study_is_of_its_scenes_and_of_the_version_that_drew_them(settings, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv('MIRRORLA_DEMO_DATA', raising=False)
    drawn = settings('--scenes', 4, 2)['recipe']
    assert drawn == dict(seed=0, size=96, train=4, val=2, version=VERSION)


def test_finished_parts_that_say_nothing_of_their_settings_are_left_alone(run, capsys, monkeypatch):
    monkeypatch.delenv('MIRRORLA_DEMO_DATA', raising=False)
    Path('work').mkdir()
    Path('work/results.json').write_text(json.dumps(RESULTS))
    with pytest.raises(SystemExit):
        run('studies/linearise', '--config', REPOSITORY / CONFIG, '--work-dir', 'work')
    assert 'study.json there does not say of which settings: move' in capsys.readouterr().err
    assert sorted(path.name for path in Path('work').iterdir()) == ['results.json']
