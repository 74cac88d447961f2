"""A checkpoint that does not fit the model is an error, where mmengine only warns."""

from __future__ import annotations

import copy
import hashlib
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from .checkpoint import (
    LOADING_ERRORS,
    CheckpointError,
    load_checkpoint_file,
    misfit,
    other_numbers,
)

__all__ = ['CheckpointFitHook', 'StartHook', 'check_fit', 'check_training_state']

_TRAINING_STATE = ('meta', 'message_hub', 'optimizer')
LACKS_SCHEDULES = (
    'it lacks the param_schedulers, as save_param_scheduler=False leaves them out, and the '
    'schedules of this config would begin anew'
)
_HUB = ('log_scalars', 'runtime_info', 'resumed_keys')


def check_fit(model: nn.Module, checkpoint: dict, name: str) -> None:
    """Make sure that a model gets all its parameters and running statistics from the checkpoint.

    mmengine loads what matches and leaves the rest at random; a test then reports figures of noise.
    Names that modules rename while they load (``_load_from_state_dict``) count as found, and what
    the checkpoint holds beyond the model is no error. Of buffers those of floating point have to be
    there, as the mean and variance of a batch norm; tables of indices follow from the config.

    Args:
        model (nn.Module): The model; the checkpoint's weights are loaded into it.
        checkpoint (dict): With the weights under ``state_dict`` or directly.
        name (str): The file, for the message.

    Raises:
        CheckpointError: If one is missing or of another shape; the model is then as before.
    """
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f'The checkpoint {name} holds no weights.')
    while _wraps(model):
        model = model.module
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        _load(model, weights, name)
    except Exception:
        # Sharded, only the first process holds whole weights.
        model.load_state_dict(before, strict=False)
        raise


def _wraps(model: nn.Module) -> bool:
    # What FSDP wraps holds shards of the weights; FSDP itself takes and gives whole ones.
    return (is_model_wrapper(model) or isinstance(model, BaseTTAModel)) and not isinstance(
        model, FullyShardedDataParallel
    )


def _load(model: nn.Module, weights: dict, name: str) -> None:
    renamed = OrderedDict(
        (re.sub(r'^module\.', '', str(key)), value) for key, value in weights.items()
    )
    renamed._metadata = getattr(weights, '_metadata', OrderedDict())  # type: ignore[attr-defined]
    for key, own in model.state_dict().items():
        value = renamed.get(key, own)
        if not isinstance(value, Tensor):
            fault = f'is no tensor there, but of type {type(value).__name__}'
        else:
            fault = other_numbers(value, own)
        if fault:
            raise CheckpointError(f'The checkpoint {name} is of another model: {key} {fault}.')
    try:
        absent, beyond = model.load_state_dict(renamed, strict=False)
    except LOADING_ERRORS as error:
        raise CheckpointError(
            f'The checkpoint {name} is of another model: {misfit(error)}.'
        ) from None
    needed = [key for key, _ in model.named_parameters()]
    needed += [key for key, buffer in model.named_buffers() if buffer.is_floating_point()]
    missing = [key for key in needed if key in set(absent)]
    if missing:
        sample = f', such as {beyond[0]}' if beyond else ''
        raise CheckpointError(
            f'The checkpoint {name} is of another model: {len(missing)} of the {len(needed)} '
            f'parameters of this config are not in it, such as {missing[0]}; {len(beyond)} of its '
            f'{len(renamed)} entries are not in this config{sample}.'
        )


# --- What a resume needs --------------------------------------------------------------------------


def check_training_state(checkpoint: Any, name: str) -> None:
    """Make sure that a checkpoint holds what mmengine takes a run up from.

    Args:
        checkpoint (Any): What the file holds.
        name (str): The file, for the message.

    Raises:
        CheckpointError: If something is missing or of another kind.
    """
    if not isinstance(checkpoint, dict) or not all(key in checkpoint for key in _TRAINING_STATE):
        raise CheckpointError(
            f'The checkpoint {name} holds weights but no training state to resume: to '
            'start from its weights use --cfg-options load_from=FILE instead.'
        )
    for fault in _faults_of_state(checkpoint):
        raise _not_resumable(name, fault)


def _not_resumable(name: str, fault: str) -> CheckpointError:
    return CheckpointError(f'The checkpoint {name} cannot be resumed from: {fault}.')


def _faults_of_state(checkpoint: dict) -> Iterator[str]:
    for key in (*_TRAINING_STATE, 'state_dict'):
        if not isinstance(checkpoint.get(key), dict):
            yield f'its {key} is no dict'
    meta, hub = checkpoint['meta'], checkpoint['message_hub']
    for key in ('epoch', 'iter'):
        if not _is_count(meta.get(key)):
            yield f'its meta.{key} is no number'
    if not (meta.get('seed') is None or (_is_count(meta['seed']) and meta['seed'] < 2**32)):
        yield 'its meta.seed is no seed'
    for key in _HUB:
        if not isinstance(hub.get(key), dict) or not all(isinstance(k, str) for k in hub[key]):
            yield f'its message_hub.{key} is no dict of names'
    info = hub['runtime_info']
    for key in info:
        counts = key in ('epoch', 'iter', 'max_epochs', 'max_iters')
        if (counts and not _is_count(info[key])) or (
            key.startswith('best_score') and not _is_number(info[key])
        ):
            yield f'its message_hub.runtime_info.{key} is no number'


def _check_same_everywhere(checkpoint: dict, name: str) -> None:
    """Make sure that all processes resume from one state: each may have a disk of its own."""
    weights = (value for value in checkpoint['state_dict'].values() if isinstance(value, Tensor))
    total = hashlib.blake2b()
    for weight in weights:
        total.update(_raw(weight))
    place = {key: checkpoint['meta'][key] for key in ('epoch', 'iter')}
    places = all_gather_object((place, total.digest()))
    for rank, other in enumerate(places):
        if other == places[0]:
            continue
        difference = (
            f'the first has one of {places[0][0]}, process {rank} one of {other[0]}'
            if other[0] != places[0][0]
            else f'the first and process {rank} have other weights'
        )
        raise CheckpointError(
            f'The checkpoint {name} is not the same in all processes: {difference}. Copy one to '
            'all machines, or use a work dir that they share.'
        )


def _raw(weight: Tensor) -> bytes:
    return weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, (int, float, np.number, np.bool_))


def _faults_of_optimizers(wrapper: OptimWrapper, state: dict, steps: int) -> Iterator[str]:
    """Faults of an optimizer, or of each of those that take turns."""
    if not isinstance(wrapper, OptimWrapperDict):
        yield from _faults_of_optimizer(wrapper, state, steps >= wrapper._accumulative_counts)
        return
    for name, part in wrapper.items():
        if not isinstance(state.get(name), dict):
            yield f'its optimizer has no {name}'
        # Whose turn it was so far is the model's affair.
        yield from _faults_of_optimizer(part, state[name], stepped=False)


def _faults_of_optimizer(wrapper: OptimWrapper, state: dict, stepped: bool) -> Iterator[str]:
    """Faults that would stop, or quietly spoil, the steps of the optimizer."""
    fresh = wrapper.state_dict()
    groups, states = state.get('param_groups'), state.get('state')
    if not isinstance(groups, list) or not isinstance(states, dict):
        yield 'its optimizer holds no groups or no state'
    sizes = [len(group['params']) for group in fresh['param_groups']]
    if not all(isinstance(group, dict) for group in groups) or sizes != [
        len(group['params']) if isinstance(group.get('params'), list) else -1 for group in groups
    ]:
        yield 'its optimizer has other groups of parameters than this config'
    for ours, theirs in zip(fresh['param_groups'], groups):
        yield from _other_kinds(ours, theirs, 'optimizer')
        # Switches are newer than some checkpoints, and have defaults.
        for key in sorted(ours.keys() - theirs.keys()):
            if not isinstance(ours[key], bool) and ours[key] is not None:
                kind = type(wrapper.optimizer).__name__
                yield f'its optimizer has no {key}, so it is of another kind than {kind}'
    parameters = [p for group in wrapper.optimizer.param_groups for p in group['params']]
    numbers = [number for group in groups for number in group['params']]
    wanted = _states_after_a_step(wrapper.optimizer, groups)
    if stepped and not states and any(wanted) and not _passed_over(state.get('loss_scaler')):
        yield 'its optimizer holds no state of any parameter'
    for number, parameter, own in zip(numbers, parameters, wanted):
        held = states.get(number, {}) if isinstance(number, int) else None
        if not isinstance(held, dict):
            yield 'its optimizer has a state that is no dict'
        for key in sorted(own.keys() - held.keys() if held else ()):
            yield f'its optimizer has no {key} of a parameter whose other state it has'
        for key, value in held.items():
            fault = _fault_of_moment(value, parameter, own.get(key))
            if fault:
                yield f'{key} of its optimizer {fault}'


def _passed_over(scaler: Any) -> bool:
    """Whether a loss scaler has counted no step, as its factor was too large for all of them."""
    return isinstance(scaler, dict) and scaler.get('_growth_tracker') == 0


def _states_after_a_step(optimizer: Optimizer, groups: list[dict]) -> list[dict]:
    """What an optimizer keeps of each parameter, by a step of a copy on tensors without values.

    The options are the checkpoint's, with which torch goes on. Nothing is known of an optimizer
    that cannot take such a step.
    """
    probe = copy.copy(optimizer)
    probe.state = defaultdict(dict)
    probe.param_groups = [
        {**ours, **theirs, 'params': [_without_values(parameter) for parameter in ours['params']]}
        for ours, theirs in zip(optimizer.param_groups, groups)
    ]
    parameters = [parameter for group in probe.param_groups for parameter in group['params']]
    try:
        probe.step()
    except Exception:
        return [{} for _ in parameters]
    return [probe.state.get(parameter, {}) for parameter in parameters]


def _without_values(parameter: Tensor) -> Tensor:
    like = torch.empty_like(parameter, device='meta').requires_grad_()
    like.grad = torch.empty_like(like)
    return like


def _fault_of_moment(value: Any, parameter: Tensor, own: Any) -> str | None:
    """What is wrong with a part of an optimizer's state; ``own`` is what it should be like."""
    number = _is_number(value) and not (isinstance(own, Tensor) and own.ndim)
    if not (isinstance(value, Tensor) or number or (value is None and own is None)):
        return f'is of the type {type(value).__name__}'
    if value is None:
        return None
    value = torch.as_tensor(value)
    if isinstance(own, Tensor):
        fits = value.shape == own.shape
    else:  # Factored moments have fewer dimensions than the parameter, or some of size 1.
        sizes = zip(value.shape, parameter.shape)
        fits = value.ndim != parameter.ndim or all(size in (1, full) for size, full in sizes)
    if not fits:
        return 'has another shape than the parameter'
    if value.is_complex() and not parameter.is_complex():
        return 'is complex'
    if not value.is_complex() and not value.float().isfinite().all():
        return 'is not finite'
    return None


def _faults_of_schedules(schedules: Any, states: Any) -> Iterator[str]:
    if isinstance(schedules, dict):
        if not isinstance(states, dict) or set(schedules) - set(states):
            yield 'its param_schedulers are of other optimizers than this config has'
        for name in schedules:
            yield from _faults_of_schedules(schedules[name], states[name])
        return
    if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
        yield 'its param_schedulers are no list of states'
    if schedules and len(states) != len(schedules):
        yield f'it has {len(states)} param_schedulers and this config {len(schedules)}'
    for schedule, state in zip(schedules or [], states):
        yield from _other_kinds(schedule.state_dict(), state, 'param_schedulers')


def _other_kinds(ours: dict, theirs: dict, place: str) -> Iterator[str]:
    """Entries that are of another kind than in a state that was just built."""
    for key in ours.keys() & theirs.keys():
        known = ours[key] is not None and theirs[key] is not None
        if known and _kind(ours[key]) != _kind(theirs[key]):
            yield f'{key} of its {place} is of the type {type(theirs[key]).__name__}'
        elif known and not _kinds(theirs[key]) <= _kinds(ours[key]):
            yield f'{key} of its {place} holds {", ".join(sorted(_kinds(theirs[key])))}'
        elif known and isinstance(ours[key], tuple) and len(ours[key]) != len(theirs[key]):
            yield f'{key} of its {place} has {len(theirs[key])} parts, not {len(ours[key])}'


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return 'sequence'
    if isinstance(value, str) or callable(value) or isinstance(value, dict):
        return type(value).__name__
    return 'number' if _is_number(value) else type(value).__name__


def _kinds(value: Any) -> set[str]:
    """What a sequence holds."""
    return set(map(_kind, value)) if isinstance(value, (list, tuple)) else set()


class CheckpointFitHook(Hook):
    """Run :func:`check_fit` on what the runner loads, before it is used.

    Args:
        filename (str): The checkpoint, for the message.
    """

    priority = 'VERY_HIGH'

    def __init__(self, filename: str) -> None:
        self.filename = filename

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and for resumption the training state.

        Raises:
            CheckpointError: If the checkpoint cannot serve.
        """
        check_fit(runner.model, checkpoint, self.filename)
        if not runner._resume:
            return
        check_training_state(checkpoint, self.filename)
        if isinstance(runner, Runner) and is_distributed():
            _check_same_everywhere(checkpoint, self.filename)
        if 'ema_state_dict' in checkpoint and any(isinstance(h, EMAHook) for h in runner.hooks):
            # EMAHook saves the averages as the weights, and the weights here.
            check_fit(runner.model, {'state_dict': checkpoint['ema_state_dict']}, self.filename)
        # A sharded optimizer is resumed by names, in its own way.
        wrapper = getattr(runner, 'optim_wrapper', None)
        if isinstance(runner, Runner) and isinstance(wrapper, OptimWrapper):
            steps = checkpoint['meta']['iter']
            for fault in _faults_of_optimizers(wrapper, checkpoint['optimizer'], steps):
                raise _not_resumable(self.filename, fault)
        schedules = getattr(runner, 'param_schedulers', None)
        if isinstance(runner, Runner) and schedules:
            if 'param_schedulers' not in checkpoint:
                raise _not_resumable(self.filename, LACKS_SCHEDULES)
            for fault in _faults_of_schedules(schedules, checkpoint['param_schedulers']):
                raise _not_resumable(self.filename, fault)


# --- What a training starts from ------------------------------------------------------------------


class StartHook(Hook):
    """Refuse a training whose pretrained weights are of another model.

    Such a file leaves the weights at random, with a warning among hundreds of lines. Here the
    weights that the training starts with are compared with those in the file, whatever road they
    took: ``load_from`` for the whole model, otherwise the ``init_cfg`` of each part.

    Args:
        share (float): The part of the weights that has to come from the file, from 0 to 1.
    """

    priority = 'VERY_HIGH'

    def __init__(self, share: float = 0.2) -> None:
        self.share = share

    def before_train(self, runner: Runner) -> None:
        """Compare.

        Raises:
            CheckpointError: If less came from a file.
        """
        if runner._resume or not isinstance(runner, Runner):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for part, name, file in _pretrained(model, runner._load_from):
            self._check(part, name, file)

    def _check(self, part: nn.Module, name: str, file: str) -> None:
        checkpoint = load_checkpoint_file(file, 'cpu')
        for key in ('state_dict', 'model'):
            if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
                checkpoint = checkpoint[key]
        theirs = set(_fingerprints(checkpoint.values() if isinstance(checkpoint, dict) else ()))
        ours = list(_fingerprints(part.state_dict().values()))
        found = sum(weight in theirs for weight in ours)
        if found < self.share * len(ours):
            raise CheckpointError(
                f'Only {found} of the {len(ours)} weights of {name} came from {file}: it is of '
                'another architecture, or its names begin with another prefix. To train with it '
                'all the same: --min-loaded 0.'
            )


def _pretrained(model: nn.Module, load_from: str | None) -> Iterator[tuple[nn.Module, str, str]]:
    if load_from:
        yield model, 'the model', load_from
        return
    for name, part in model.named_modules():
        cfg = getattr(part, 'init_cfg', None)
        if isinstance(cfg, dict) and cfg.get('type') == 'Pretrained':
            yield part, name or 'the model', cfg['checkpoint']


def _fingerprints(weights: Iterable[Any]) -> Iterator[bytes]:
    """A hash of the values of each weight; constant ones say nothing of their origin."""
    for weight in weights:
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.numel():
            values = weight.detach().float()
            if values.min() < values.max():
                yield hashlib.blake2b(_raw(values)).digest()
