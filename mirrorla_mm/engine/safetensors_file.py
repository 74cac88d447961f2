"""Checkpoints in the format of safetensors: tensors, and text that describes them.

The format holds no objects. What a checkpoint of mmengine says of itself (``meta``) and the version
numbers of its modules go into its table of texts as JSON.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np
import torch

from .errors import UserError
from .safe_pickle import Budget, check_content

__all__ = ['dump_safetensors', 'is_safetensors', 'read_safetensors']

LENGTH = 8  # bytes of the number that begins a file: how long its header is
META = 'mirrorla_mm.meta'
VERSIONS = 'mirrorla_mm.versions'


def is_safetensors(stream: BinaryIO) -> bool:
    """Whether a stream holds this format; it stands at its beginning before and after."""
    start = stream.read(LENGTH + 1)
    stream.seek(0)
    # torch.save begins with PK or a pickle's opcode; a header is a JSON object.
    return start[LENGTH:] == b'{' and not start.startswith(b'PK')


def read_safetensors(stream: BinaryIO, map_location: Any = None) -> dict[str, Any]:
    """Read a file of safetensors.

    Args:
        stream (BinaryIO): Open at its beginning.
        map_location (Any): A device, or None for the CPU; others of :func:`torch.load` mean the
            CPU as well, where all tensors of the format are.

    Returns:
        dict: With ``state_dict`` and ``meta``, which is empty where another program wrote the file.

    Raises:
        safe_pickle.Refused: If its texts nest too deep or hold terminal control codes.
        Exception: Of any kind, if it is damaged.
    """
    content = stream.read()
    length = int.from_bytes(content[:LENGTH], 'little')
    texts = json.loads(content[LENGTH : LENGTH + length]).get('__metadata__', {})
    weights = OrderedDict(_library().load(content))
    if isinstance(map_location, (str, torch.device)):
        weights = OrderedDict((key, value.to(map_location)) for key, value in weights.items())
    weights._metadata = OrderedDict(json.loads(texts.get(VERSIONS, '{}')))  # type: ignore[attr-defined]
    loaded = {'state_dict': weights, 'meta': dict(json.loads(texts.get(META, '{}')))}
    check_content(loaded, Budget(len(content)))
    return loaded


def dump_safetensors(weights: dict[str, torch.Tensor], meta: dict[str, Any]) -> bytes:
    """Give the content of a file with these weights and metadata.

    Args:
        weights (dict[str, Tensor]): Each with memory of its own.
        meta (dict): Of plain values: tuples come back as lists, NumPy arrays too.

    Raises:
        TypeError: If ``meta`` holds what JSON cannot.
    """
    texts = {
        'format': 'pt',
        META: json.dumps(meta, default=_plain),
        VERSIONS: json.dumps(getattr(weights, '_metadata', {})),
    }
    return _library().save(dict(weights), texts)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f'a {type(value).__name__} is no plain value')


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(
            'This file is in the format of safetensors: run pip install safetensors'
        ) from None
    return safetensors.torch
