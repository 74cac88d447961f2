"""``tools/quickstart.py``: what it calls, reuses, resumes, refuses and reports.

The commands it would run for minutes are replaced by ones that leave the same files at once.
"""

import importlib.util
import json
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mirrorla_mm.demo.dataset import Recipe
from mirrorla_mm.engine import launch

SCRIPT = Path(__file__).parents[1] / 'tools' / 'quickstart.py'
LEARNED = {'coco/bbox_mAP_50': 0.8, 'coco/bbox_mAP': 0.5, 'mIoU': 80.0, 'aAcc': 90.0}


class Tools:
    """Stands in for ``tools/train.py`` and ``tools/test.py``."""

    def __init__(self):
        self.calls = []
        self.metrics = LEARNED
        self.interrupt_training = False

    def __call__(self, quickstart, tool, arguments, work_dir, log, report):
        self.calls.append((tool, Path(work_dir).name, '--resume' in arguments))
        work_dir.mkdir(parents=True, exist_ok=True)
        if tool == 'train.py':
            last = quickstart.load_config(arguments[0]).train_cfg.max_epochs
            self.save(work_dir, 1 if self.interrupt_training else last)
            report('Epoch(train) [2][25/50]  lr: 1e-3  eta: 0:01:02  time: 0.7  loss: 0.5  x: 1')
            if self.interrupt_training:
                raise KeyboardInterrupt
            return
        option, _, value = arguments[-1].partition('=')
        assert option in ('test_evaluator.outfile_prefix', 'test_evaluator.output_dir')
        assert Path(value) == work_dir / 'predictions'
        (work_dir / '20260101_000000').mkdir()
        metrics = work_dir / '20260101_000000' / '20260101_000000.json'
        metrics.write_text(json.dumps(self.metrics))

    @staticmethod
    def save(work_dir, epoch):
        checkpoint = work_dir / f'epoch_{epoch}.pth'
        torch.save({}, checkpoint)
        (work_dir / 'last_checkpoint').write_text(str(checkpoint))


@pytest.fixture
def tools():
    return Tools()


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location('quickstart', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'quickstart', module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quickstart(script, tools, monkeypatch, tmp_path):
    monkeypatch.setattr(script.Quickstart, 'call', lambda self, *args: tools(script, *args))
    stand_ins = dict(draw=lambda *args: args[-1].touch(), count=lambda *args: '3 of 4 objects')
    tasks = [replace(task, **stand_ins) for task in script.TASKS]
    monkeypatch.setattr(script, 'TASKS', tasks)
    monkeypatch.setattr(script, 'Recipe', lambda seed: Recipe(seed=seed, size=64, train=1, val=1))
    for name in ('MIRRORLA_DEMO_DATA', 'MIRRORLA_DEMO_PRETRAINED'):
        monkeypatch.setenv(name, '')  # restored afterwards
    monkeypatch.chdir(tmp_path)
    return script


FULL = [
    ('train.py', 'segmentor', False),
    ('test.py', 'test', False),
    ('train.py', 'detector', False),
    ('test.py', 'test', False),
]


def test_trains_and_tests_both_models_and_reports_figures_and_files(quickstart, tools, capsys):
    assert quickstart.main([]) == 0
    assert tools.calls == FULL
    output = capsys.readouterr().out
    table = output[output.index('MirrorLA-XT on drawn scenes') : output.index('this call took')]
    for figure in ('bbox AP50 0.8', 'bbox AP 0.5', 'mIoU 80', 'aAcc 90', '3 of 4 objects'):
        assert figure in table
    files = re.findall(r'(?:work_dirs|data)/\S+', table)
    assert len(files) == 5
    assert all(Path(file).exists() for file in files)
    assert 'epoch 2/' in output


@pytest.mark.parametrize(('cuda', 'hidden'), [('not available', True), ('13.0', False)])
def test_gpu_is_used_where_mmcv_s_ops_can_use_it(quickstart, monkeypatch, capsys, cuda, hidden):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    monkeypatch.setattr(launch.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(launch, 'get_compiling_cuda_version', lambda: cuda)
    assert quickstart.main([]) == 0
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ('' if hidden else '0')
    assert ('built without CUDA' in capsys.readouterr().out) == hidden


def test_second_call_reuses_everything(quickstart, tools):
    quickstart.main([])
    tools.calls.clear()
    assert quickstart.main([]) == 0
    assert tools.calls == []


def test_interrupted_training_is_resumed(quickstart, tools, capsys):
    tools.interrupt_training = True
    assert quickstart.main([]) == 130
    assert 'goes on from here' in capsys.readouterr().out
    tools.calls.clear()
    tools.interrupt_training = False
    assert quickstart.main([]) == 0
    assert tools.calls == [('train.py', 'segmentor', True), *FULL[1:]]


@pytest.mark.parametrize('change', [['--seed', '1'], ['--fresh']])
def test_another_data_set_and_fresh_train_again(quickstart, tools, change):
    quickstart.main([])
    tools.calls.clear()
    assert quickstart.main(change) == 0
    assert tools.calls == FULL


def test_detector_starts_from_the_segmentor_and_is_trained_again_with_it(quickstart, tools):
    quickstart.main(['--work-dir', 'elsewhere'])
    pretrained = Path(os.environ['MIRRORLA_DEMO_PRETRAINED'])
    assert pretrained.parent == Path('elsewhere/segmentor') and pretrained.exists()
    detector = quickstart.load_config(quickstart.TASKS[1].config_path).model.backbone.init_cfg
    assert detector.checkpoint == str(pretrained) and detector.prefix == 'backbone.'
    (pretrained.parent / 'quickstart.sha256').write_text('of another segmentor')
    tools.calls.clear()
    quickstart.main(['--work-dir', 'elsewhere'])
    assert tools.calls == FULL[:2]  # the same segmentor again, so the detector stays


def test_ends_with_three_commands_that_exist(quickstart, capsys):
    quickstart.main(['--work-dir', 'elsewhere'])
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith('$ ')]
    for command in commands[-3:]:
        words = shlex.split(command)
        assert 'MIRRORLA_DEMO_PRETRAINED=elsewhere/segmentor/epoch_5.pth' in words
        (script,) = (word for word in words if word.startswith('..') and '/tools/' in word)
        assert Path(script).is_file()
    assert 'PHOTO.jpg' in commands[-3]


def test_a_model_that_has_not_learned_is_said_and_returned(quickstart, tools, capsys):
    tools.metrics = {**LEARNED, 'mIoU': 74.9}
    assert quickstart.main([]) == 1
    output = capsys.readouterr().out
    assert output.count('NOT learned') == 1
    assert 'has not reached its goal' in output


def test_directories_of_others_are_left_alone(quickstart, tools, capsys):
    precious = Path('mine/detector/thesis.tex')
    precious.parent.mkdir(parents=True)
    precious.write_text('precious')
    assert quickstart.main(['--work-dir', 'mine', '--fresh']) == 1
    assert 'give another --work-dir' in capsys.readouterr().out
    assert quickstart.main(['--data-dir', 'mine', '--fresh']) == 1
    assert 'choose another directory' in capsys.readouterr().out
    assert precious.read_text() == 'precious'
    assert tools.calls == []


def test_negative_seed_is_refused(quickstart, capsys):
    with pytest.raises(SystemExit):
        quickstart.main(['--seed', '-1'])
    assert '--seed must not be negative, got -1' in capsys.readouterr().err


def test_failing_command_is_shown_with_the_end_of_its_log(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'ROOT', tmp_path)
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', '')
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text('print("started"); raise SystemExit(3)')
    quickstart = script.Quickstart(script.parse_args([]), script.Console(width=110))
    seen = []
    with pytest.raises(script.UserError, match='started\n\n.*exit code 3; the whole log is in'):
        quickstart.call('train.py', [], tmp_path / 'work', 'train.log', seen.append)
    assert seen == ['started\n']
    assert (tmp_path / 'work' / 'train.log').read_text() == 'started\n'


def test_interruption_ends_the_running_command(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'ROOT', tmp_path)
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', '')
    (tmp_path / 'tools').mkdir()
    program = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'
    (tmp_path / 'tools' / 'train.py').write_text(program)
    quickstart = script.Quickstart(script.parse_args([]), script.Console(width=110))
    started = []

    def interrupt(line):
        started.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickstart.call('train.py', [], tmp_path / 'work', 'train.log', interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
