"""Read the weights out of a stranger's checkpoint."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import Tensor

from ..engine import load_checkpoint_file
from .converted import ConversionError

# Where training scripts keep the weights. Those averaged over training come last, as the published
# figures are of the plain ones; of BasicSR's it is the other way round.
CONTAINERS = ('state_dict', 'model', 'module', 'model_ema', 'params_ema', 'params')
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)


def read_state_dict(file: str | os.PathLike) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, wherever its training script put them.

    Raises:
        CheckpointError: If the file is damaged or asks to run code.
        ConversionError: If there are no weights in it, or something that is not one.
    """
    content = load_checkpoint_file(file, map_location='cpu')
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ConversionError(
            f'{file} holds no weights: expected a state dict, or one under {", ".join(CONTAINERS)}.'
        )
    for key, value in content.items():
        problem = _problem(key, value)
        if problem:
            raise ConversionError(f'{file} cannot be converted: {key!r} {problem}.')
    weights = {re.sub(r'^module\.', '', key): value.detach() for key, value in content.items()}
    if len(weights) < len(content):
        raise ConversionError(
            f"{file} has entries both with and without 'module.' before the name."
        )
    return weights


def _problem(key: Any, value: Any) -> str | None:
    """Say why an entry of a file is no weight, if it is none."""
    if not isinstance(key, str):
        return 'is no name of a parameter'
    if not isinstance(value, Tensor):
        return f'is no tensor, but of type {type(value).__name__}'
    if value.layout != torch.strided or value.device.type != 'cpu' or value.dtype not in DTYPES:
        return f'is no plain tensor ({value.dtype}, {value.layout}, {value.device})'
    # A view with strides of 0 takes no room in the file, but would in the model.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f'has shape {tuple(value.shape)}, which is more than the file holds'
    if not value.isfinite().all():
        return 'holds numbers that are not finite'
    return None
