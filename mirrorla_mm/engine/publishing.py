"""From a checkpoint of a training to a file for others: weights and metadata, nothing else."""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from .atomic import whole_file
from .checkpoint import CheckpointError, load_checkpoint_file
from .errors import UserError
from .safetensors_file import dump_safetensors

__all__ = ['WEIGHTS', 'publish']

WEIGHTS = ('ema', 'trained')


def publish(src: str | os.PathLike, dst: str | os.PathLike, weights: str | None = None) -> Path:
    """Write a checkpoint without its training state, under a name that its content proves.

    Optimizer, schedules and logs are left out, the metadata (classes, config, epoch) stay. The
    file loads wherever the checkpoint did, but for resuming.

    Args:
        src (str | os.PathLike): Checkpoint of a training.
        dst (str | os.PathLike): ``NAME.pth`` or ``NAME.safetensors``, which decides the format; the
            file becomes ``NAME-HASH`` with the first 8 digits of its SHA-256.
        weights (str, optional): ``'ema'``: the running averages of ``EMAHook``; ``'trained'``: the
            weights that they are averages of. Defaults to the averages where there are some.

    Returns:
        Path: The file.

    Raises:
        UserError: If ``dst`` has another suffix, or the metadata cannot be written in its format.
        CheckpointError: If the file holds no weights, no averages although they are asked for, or
            metadata that are no dict.
        OSError: If it cannot be written.
    """
    dst = Path(dst)
    if dst.suffix not in ('.pth', '.safetensors'):
        raise UserError(f'A published file ends in .pth or .safetensors, not as {dst}.')
    checkpoint = load_checkpoint_file(src, 'cpu')
    chosen = _choose(checkpoint, weights, str(src))
    meta = checkpoint.get('meta') or {}
    if not isinstance(meta, dict):
        raise CheckpointError(
            f'The metadata of the checkpoint {src} are a {type(meta).__name__} instead of a dict.'
        )
    meta = dict(meta.items())  # a plain dict: the loader quotes the config in it
    if dst.suffix == '.pth':
        buffer = io.BytesIO()
        torch.save({'meta': meta, 'state_dict': chosen}, buffer)
        content = buffer.getvalue()
    else:
        try:
            content = dump_safetensors(chosen, meta)
        except TypeError as error:
            raise UserError(
                f'The metadata of {src} do not fit into safetensors ({error}): publish a .pth.'
            ) from None
    digest = hashlib.sha256(content).hexdigest()[:8]
    published = dst.with_name(f'{dst.stem}-{digest}{dst.suffix}')
    with whole_file(published) as partial:
        partial.write_bytes(content)
    return published


def _choose(checkpoint: dict, weights: str | None, name: str) -> OrderedDict[str, Tensor]:
    held = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(held, dict) or not held:
        raise CheckpointError(f'The checkpoint {name} holds no weights.')
    chosen = OrderedDict(held)
    # EMAHook saves the averages as the weights of the model, and these in place of its averages.
    other = checkpoint.get('ema_state_dict')
    if weights == 'ema' and not other:
        raise CheckpointError(f'The checkpoint {name} holds no running averages.')
    if weights == 'trained' and other:
        chosen.update(
            (key.removeprefix('module.'), value)
            for key, value in other.items()
            if key.startswith('module.')
        )
    odd = [key for key, value in chosen.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(f'The checkpoint {name} holds {odd[0]}, which is no tensor.')
    # Memory of their own: a view would take its whole storage along.
    own = OrderedDict(
        (k, v.detach().clone(memory_format=torch.contiguous_format)) for k, v in chosen.items()
    )
    own._metadata = getattr(held, '_metadata', OrderedDict())  # type: ignore[attr-defined]
    return own
