"""A checkpoint that does not fit is refused in one sentence, before anything comes of it."""

import copy
from collections import OrderedDict

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from torch import nn

from mirrorla_mm.engine import checkpoint_fit
from mirrorla_mm.engine.checkpoint import CheckpointError, load_checkpoint_file
from mirrorla_mm.engine.checkpoint_fit import (
    CheckpointFitHook,
    StartHook,
    _check_same_everywhere,
    _faults_of_optimizers,
    check_fit,
    check_training_state,
)
from mirrorla_mm.engine.errors import one_line_errors

from .toy import ToyModel, toy_runner

# --- Weights and statistics -----------------------------------------------------------------------


@pytest.mark.parametrize('missing', ['running_mean', 'running_var'])
def test_missing_statistics_of_a_batch_norm_are_named(missing):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    weights = OrderedDict(model.state_dict())
    del weights[f'1.{missing}']
    with pytest.raises(CheckpointError, match=rf'a\.pth is of another model.*1\.{missing}'):
        check_fit(model, {'state_dict': weights}, 'a.pth')


def test_what_follows_from_the_config_may_be_missing():
    model = nn.BatchNorm2d(2)
    model.register_buffer('index', torch.arange(3))
    weights = OrderedDict(model.state_dict())
    del weights['num_batches_tracked'], weights['index']
    weights.pop('_metadata', None)
    check_fit(model, {'state_dict': weights}, 'a.pth')


@pytest.mark.parametrize(
    'weight',
    [
        torch.ones(2, 2, device='meta'),
        torch.eye(2).to_sparse(),
        torch.ones(2, 2).cfloat(),
        torch.ones(2, 2, dtype=torch.int8),
        torch.ones(2, 2, dtype=torch.bool),
    ],
)
def test_weight_that_cannot_be_copied_leaves_the_model_untouched(weight):
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r'a\.pth is of another model: .*weight') as info:
        check_fit(model, {'state_dict': {'weight': weight}}, 'a.pth')
    assert '\n' not in str(info.value)
    assert torch.equal(model.weight, before)


# --- Resuming from odd contents -------------------------------------------------------------------


def group(key, value):
    return lambda c: c['optimizer']['param_groups'][0].__setitem__(key, value)


def entry(*path_and_value):
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def without(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


INFO = ('message_hub', 'runtime_info')
ODD = {
    'no meta': without('meta'),
    'no message hub': without('message_hub'),
    'no optimizer': without('optimizer'),
    'no weights': without('state_dict'),
    'meta is text': entry('meta', 'text'),
    'meta is None': entry('meta', None),
    'meta is empty': entry('meta', {}),
    'epoch is text': entry('meta', 'epoch', '2'),
    'epoch is negative': entry('meta', 'epoch', -1),
    'iter is None': entry('meta', 'iter', None),
    'iter is a list': entry('meta', 'iter', [2]),
    'iter is a fraction': entry('meta', 'iter', 2.5),
    'seed is text': entry('meta', 'seed', 'text'),
    'seed is negative': entry('meta', 'seed', -3),
    'seed is huge': entry('meta', 'seed', 2**40),
    'hub is a list': entry('message_hub', []),
    'hub is empty': entry('message_hub', {}),
    'scalars are a list': entry('message_hub', 'log_scalars', []),
    'info is None': entry('message_hub', 'runtime_info', None),
    'info by numbers': entry('message_hub', 'runtime_info', {1: 2}),
    'keys are a list': entry('message_hub', 'resumed_keys', ['a']),
    'best score is text': entry(*INFO, 'best_score', 'text'),
    'best score is a list': entry(*INFO, 'best_score_acc', [1.0]),
    'optimizer is text': entry('optimizer', 'text'),
    'optimizer is empty': entry('optimizer', {}),
    'state is a list': entry('optimizer', 'state', []),
    'groups are a dict': entry('optimizer', 'param_groups', {}),
    'groups are missing': entry('optimizer', 'param_groups', []),
    'group is text': entry('optimizer', 'param_groups', 0, 'text'),
    'group of other parameters': group('params', [0]),
    'learning rate is text': group('lr', 'text'),
    'betas are a number': group('betas', 0.9),
    'moment of another shape': entry('optimizer', 'state', 0, 'exp_avg', torch.ones(7)),
    'moment is text': entry('optimizer', 'state', 0, 'exp_avg', 'text'),
    'step is a list': entry('optimizer', 'state', 0, 'step', [1]),
    'state of a parameter is None': entry('optimizer', 'state', 0, None),
    'schedules are text': entry('param_schedulers', 'text'),
    'schedule is None': entry('param_schedulers', 0, None),
    'schedule is of other kinds': entry('param_schedulers', 1, 'milestones', 'text'),
    'place of a schedule is text': entry('param_schedulers', 0, 'last_step', 'text'),
    'betas are text': group('betas', ('a', 'b')),
    'betas are one': group('betas', (0.9,)),
    'states are lost': entry('optimizer', 'state', {}),
    'moment is lost': without('optimizer', 'state', 0, 'exp_avg_sq'),
    'moment is None': entry('optimizer', 'state', 0, 'exp_avg', None),
    'moment is a number': entry('optimizer', 'state', 0, 'exp_avg', 1.0),
    'moment of other dimensions': entry('optimizer', 'state', 2, 'exp_avg', torch.ones(3)),
    'moment is complex': entry('optimizer', 'state', 0, 'exp_avg', torch.ones(4).cfloat()),
    'moment is no number': entry('optimizer', 'state', 0, 'exp_avg', torch.full((4,), torch.nan)),
    'step is no number': entry('optimizer', 'state', 0, 'step', torch.tensor(torch.nan)),
    'schedules are missing': without('param_schedulers'),
    'schedule is missing': without('param_schedulers', 0),
    'schedule is too much': lambda c: c['param_schedulers'].append({}),
    'averages are text': entry('ema_state_dict', 'text'),
    'averages are missing': entry('ema_state_dict', {}),
    'averages of another shape': entry('ema_state_dict', 'module.head.weight', torch.ones(9)),
    'weights are text': entry('state_dict', 'text'),
}


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> dict:
    """A checkpoint that a run can be taken up from."""
    work_dir = tmp_path_factory.mktemp('run')
    toy_runner(work_dir, max_iters=2).train()
    return load_checkpoint_file(work_dir / 'iter_2.pth')


@pytest.mark.parametrize('name', [None, *ODD])
def test_resume_from_odd_contents_ends_in_one_sentence(saved, name, tmp_path, capsys):
    content = copy.deepcopy(saved)
    if name:
        ODD[name](content)
    file = tmp_path / 'odd.pth'
    torch.save(content, file)
    runner = toy_runner(tmp_path, max_iters=4, resume=True, load_from=str(file))
    runner.register_hook(CheckpointFitHook(str(file)))
    if name is None:
        runner.train()
        return
    with pytest.raises(SystemExit), one_line_errors():
        check_training_state(load_checkpoint_file(file), str(file))
        runner.train()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('error: The checkpoint') and line.isprintable()


@pytest.mark.parametrize(('kind', 'lacks'), [('SGD', 'dampening'), ('RMSprop', 'alpha')])
def test_resume_with_another_optimizer_ends_in_one_sentence(saved, tmp_path, kind, lacks):
    file = tmp_path / 'adamw.pth'
    torch.save(copy.deepcopy(saved), file)
    options = dict(max_iters=4, resume=True, load_from=str(file))
    runner = toy_runner(tmp_path, optimizer=dict(type=kind, lr=0.1), **options)
    runner.register_hook(CheckpointFitHook(str(file)))
    with pytest.raises(CheckpointError, match=f'has no {lacks}, so it is of another kind than'):
        runner.train()


ADAFACTOR = 'TorchAdafactor' if 'TorchAdafactor' in OPTIMIZERS else 'Adafactor'


@pytest.mark.parametrize(
    'kind', ['SGD', 'SGD with momentum', 'ASGD', 'Adagrad', 'RMSprop', ADAFACTOR]
)
def test_a_resume_takes_whatever_state_an_optimizer_has(tmp_path, kind):
    kind, *momentum = kind.split(' with ')
    optimizer = dict(type=kind, lr=0.01, **dict.fromkeys(momentum, 0.9))
    toy_runner(tmp_path, max_iters=2, optimizer=optimizer).train()
    file = str(tmp_path / 'iter_2.pth')
    runner = toy_runner(tmp_path, max_iters=4, optimizer=optimizer, resume=True, load_from=file)
    runner.register_hook(CheckpointFitHook(file))
    runner.train()


@pytest.mark.parametrize(
    ('kind', 'option'),
    [
        ('SGD', dict(momentum=0.9)),
        ('AdamW', dict(amsgrad=True)),
        ('RMSprop', dict(momentum=0.9)),
        ('RMSprop', dict(centered=True)),
    ],
)
def test_a_resume_goes_on_with_the_options_of_the_checkpoint(tmp_path, kind, option):
    optimizer = dict(type=kind, lr=0.01)
    toy_runner(tmp_path, max_iters=2, optimizer=optimizer).train()
    file = str(tmp_path / 'iter_2.pth')
    changed = {**optimizer, **option}
    runner = toy_runner(tmp_path, max_iters=4, optimizer=changed, resume=True, load_from=file)
    runner.register_hook(CheckpointFitHook(file))
    runner.train()
    (name,) = option
    assert not runner.optim_wrapper.param_groups[0][name]


@pytest.mark.parametrize('counted', [0, 3])
def test_steps_that_a_loss_scaler_passed_over_leave_no_state(saved, counted):
    runner_state = copy.deepcopy(saved['optimizer'])
    runner_state.update(state={}, loss_scaler=dict(_growth_tracker=counted))
    weights = [
        torch.zeros(4, requires_grad=True) for _ in runner_state['param_groups'][0]['params']
    ]
    wrapper = OptimWrapper(torch.optim.AdamW(weights))
    faults = list(_faults_of_optimizers(wrapper, runner_state, steps=9))
    assert faults == ['its optimizer holds no state of any parameter'] * (counted > 0)


def test_optimizers_that_take_turns_are_each_checked():
    def wrapper() -> OptimWrapperDict:
        weights = [torch.zeros(2, requires_grad=True) for _ in range(2)]
        return OptimWrapperDict(
            first=OptimWrapper(torch.optim.AdamW(weights[:1])),
            second=OptimWrapper(torch.optim.SGD(weights[1:])),
        )

    state = wrapper().state_dict()
    assert not list(_faults_of_optimizers(wrapper(), state, steps=9))
    state['second'] = state['first']
    assert 'of another kind than SGD' in next(_faults_of_optimizers(wrapper(), state, steps=9))


def test_processes_with_other_weights_of_one_iteration_are_told_apart(saved, monkeypatch):
    def gathered(own):
        return [own, (own[0], b'other')]

    monkeypatch.setattr(checkpoint_fit, 'all_gather_object', gathered)
    with pytest.raises(CheckpointError, match='the first and process 1 have other weights'):
        _check_same_everywhere(saved, 'a.pth')


def test_a_resume_before_the_first_step_takes_an_empty_state(saved, tmp_path):
    content = copy.deepcopy(saved)
    content['optimizer']['state'] = {}
    content['meta']['iter'] = 1  # Two iterations are accumulated.
    torch.save(content, tmp_path / 'early.pth')
    file = str(tmp_path / 'early.pth')
    runner = toy_runner(tmp_path, max_iters=4, resume=True, load_from=file)
    runner.register_hook(CheckpointFitHook(file))
    runner.train()


def test_a_resume_may_add_switches_of_newer_optimizers(saved, tmp_path):
    content = copy.deepcopy(saved)
    for each in content['optimizer']['param_groups']:
        for key in ('fused', 'foreach', 'decoupled_weight_decay'):
            each.pop(key, None)
    torch.save(content, tmp_path / 'older.pth')
    runner = toy_runner(tmp_path, max_iters=4, resume=True, load_from=str(tmp_path / 'older.pth'))
    runner.register_hook(CheckpointFitHook('older.pth'))
    runner.train()


# --- Starting from pretrained weights -------------------------------------------------------------


def start(tmp_path, weights, share=0.2, **kwargs):
    torch.save({'state_dict': weights}, tmp_path / 'start.pth')
    runner = toy_runner(tmp_path, max_iters=1, **kwargs)
    runner.register_hook(StartHook(share))
    runner.train()


def test_load_from_of_another_architecture_is_refused(tmp_path):
    file = str(tmp_path / 'start.pth')
    other = {'layer1.weight': torch.randn(4, 4), 'layer1.bias': torch.randn(4)}
    with pytest.raises(CheckpointError, match=r'Only 0 of the .*start\.pth.*--min-loaded 0'):
        start(tmp_path, other, load_from=file)
    start(tmp_path, other, share=0, load_from=file)


def test_an_empty_weight_says_nothing_of_its_origin(tmp_path):
    weights = {**ToyModel().state_dict(), 'empty': torch.empty(0, 4)}
    start(tmp_path, weights, load_from=str(tmp_path / 'start.pth'))


def test_load_from_of_the_same_architecture_is_trained_on(tmp_path):
    start(tmp_path, ToyModel().state_dict(), load_from=str(tmp_path / 'start.pth'))


def test_pretrained_part_of_another_architecture_is_refused(tmp_path):
    class Part(nn.Module):
        init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'start.pth')}

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

    runner = toy_runner(tmp_path, max_iters=1)
    part = runner.model.part = Part()
    torch.save({'fc.weight': torch.randn(3, 3)}, tmp_path / 'start.pth')
    with pytest.raises(CheckpointError, match='Only 0 of the 2 weights of part came from'):
        StartHook().before_train(runner)
    torch.save(part.state_dict(), tmp_path / 'start.pth')
    StartHook().before_train(runner)
