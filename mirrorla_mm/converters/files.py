"""From a file to a file: nothing is written before all of it fits."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..engine.atomic import whole_file
from .converted import ConversionError, Converted
from .reading import read_state_dict


@contextmanager
def blamed_on(src: str | os.PathLike) -> Iterator[None]:
    """Name the file that is converted where a converter refuses it.

    Args:
        src (str | os.PathLike): The file.

    Raises:
        ConversionError: For any ``ValueError``.
    """
    try:
        yield
    except ValueError as error:
        reason = str(error)
        raise ConversionError(
            f'{src} cannot be converted: {reason[:1].lower()}{reason[1:]}'
        ) from error


def convert_file(
    convert: Callable[[dict[str, Tensor]], Converted],
    src: str | os.PathLike,
    dst: str | os.PathLike,
) -> Converted:
    """Read a file, convert and write it.

    Args:
        convert (Callable): A converter.
        src (str | os.PathLike): Official file.
        dst (str | os.PathLike): Checkpoint to write, only if all goes well.

    Returns:
        Converted: What was written.

    Raises:
        CheckpointError: If ``src`` is damaged or asks to run code.
        ConversionError: If it is not what the converter reads; the message names the file.
        OSError: If there is no such file, or ``dst`` cannot be written.
    """
    weights = read_state_dict(src)
    with blamed_on(src):
        converted = convert(weights)
    write_checkpoint(converted, dst)
    return converted


def write_checkpoint(converted: Converted, file: str | os.PathLike) -> None:
    """Write a checkpoint as mmengine does, with the backbone's config in its ``meta``.

    Raises:
        OSError: If it cannot be written; then there is no new file, and an old one is untouched.
    """
    content = io.BytesIO()
    torch.save(
        dict(meta=dict(backbone=converted.backbone), state_dict=converted.state_dict), content
    )
    with whole_file(file) as partial:
        partial.write_bytes(content.getvalue())
