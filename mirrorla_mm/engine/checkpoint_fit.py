"""A checkpoint that does not fit the model is an error, where mmengine only warns."""

from __future__ import annotations

import re
from collections import OrderedDict

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from .checkpoint import CheckpointError

__all__ = ['CheckpointFitHook', 'check_fit']

_TRAINING_STATE = ('meta', 'message_hub', 'optimizer')


def check_fit(model: nn.Module, checkpoint: dict, name: str) -> None:
    """Make sure that every parameter of a model gets its value from the checkpoint.

    mmengine loads what matches and leaves the rest at random; a test then reports figures of noise.
    Names that modules rename while they load (``_load_from_state_dict``) count as found, and what
    the checkpoint holds beyond the model is no error.

    Args:
        model (nn.Module): The model; the checkpoint's weights are loaded into it.
        checkpoint (dict): With the weights under ``state_dict`` or directly.
        name (str): The file, for the message.

    Raises:
        CheckpointError: If a parameter is missing or of another shape; the model is then as before.
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
    for key in model.state_dict().keys() & renamed.keys():
        if not isinstance(renamed[key], Tensor):
            raise CheckpointError(
                f'The checkpoint {name} is of another model: {key} is no tensor there, but of type '
                f'{type(renamed[key]).__name__}.'
            )
    try:
        absent, beyond = model.load_state_dict(renamed, strict=False)
    except RuntimeError as error:
        mismatch = re.search(r'size mismatch for (\S+): .*?(\[.*?\]).*?(\[.*?\])', str(error), re.S)
        if mismatch is None:
            raise
        key, theirs, ours = mismatch.groups()
        key = key.replace('_fsdp_wrapped_module.', '')
        raise CheckpointError(
            f'The checkpoint {name} is of another model: {key} has the shape {theirs} there and '
            f'{ours} in this config.'
        ) from error
    parameters = [key for key, _ in model.named_parameters()]
    missing = [key for key in parameters if key in set(absent)]
    if missing:
        sample = f', such as {beyond[0]}' if beyond else ''
        raise CheckpointError(
            f'The checkpoint {name} is of another model: {len(missing)} of the {len(parameters)} '
            f'parameters of this config are not in it, such as {missing[0]}; {len(beyond)} of its '
            f'{len(renamed)} entries are not in this config{sample}.'
        )


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
        if runner._resume and not all(key in checkpoint for key in _TRAINING_STATE):
            raise CheckpointError(
                f'The checkpoint {self.filename} holds weights but no training state to resume: to '
                'start from its weights use --cfg-options load_from=FILE instead.'
            )
