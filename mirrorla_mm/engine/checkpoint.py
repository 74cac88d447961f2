"""Loading checkpoints with any torch, and refusing those that could run code.

Since torch 2.6 ``torch.load`` refuses mmengine's own checkpoints (open-mmlab/mmengine#1655);
before, it ran whatever a file told it to. :func:`load_checkpoint_file` does neither: see
:mod:`.safe_pickle`. :func:`register_safe_loader` puts it under every loader of mmengine, and so
under ``load_checkpoint``, ``Runner.load_checkpoint`` and ``resume``,
``init_cfg=dict(type='Pretrained')`` and the tools and inferencers of mmdet and mmseg.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint

from . import safe_pickle
from .errors import UserError

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'load_checkpoint_file',
    'load_url',
    'register_safe_loader',
    'require_file',
]

ZIP = b'PK\x03\x04'  # What a file of torch.save begins with.
CHUNK = 2**20


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be used; the message names the file."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for something that could run code; nothing of it was executed."""


def load_checkpoint_file(file: str | os.PathLike | BinaryIO, map_location: Any = None) -> Any:
    """Load a file that :func:`torch.save` wrote, without executing anything in it.

    Tensors, containers, numbers and text are read, NumPy arrays and scalars without objects in
    them, and mmengine's ``HistoryBuffer`` and ``ConfigDict``; all else is refused. Both formats of
    ``torch.save`` are read; TorchScript archives and the tar files of torch 0.1 are not. Checksums
    are verified, which only the newer format has.

    Args:
        file (str | os.PathLike | BinaryIO): The path, or an open binary file.
        map_location (Any): As for :func:`torch.load`.

    Returns:
        Any: What was saved; for checkpoints a dict.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If the file asks for a type or function that is not on the list.
        CheckpointError: If it is damaged, cut short or no checkpoint.
    """
    if not isinstance(file, (str, os.PathLike)):
        return _load_stream(file, str(getattr(file, 'name', 'the given stream')), map_location)
    path = Path(file).expanduser()
    require_file(path)
    with path.open('rb') as stream:
        return _load_stream(stream, str(path), map_location)


def require_file(path: str | os.PathLike) -> None:
    """Make sure that a checkpoint is there, unless it is a URL.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if '://' in str(path) or Path(path).is_file():
        return
    found = 'is a folder, not a file' if Path(path).is_dir() else 'does not exist'
    raise FileNotFoundError(f'The checkpoint {path} {found}.')


def _load_stream(stream: BinaryIO, name: str, map_location: Any) -> Any:
    try:
        return torch.load(_checked(stream), map_location, safe_pickle, weights_only=False)
    except safe_pickle.ForbiddenGlobal as error:
        raise UnsafeCheckpointError(
            f'The checkpoint {name} was refused and nothing in it was executed: it asks for '
            f'{error.name}, which is not among the types that a checkpoint may hold and could run '
            'code on this machine.'
        ) from None
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        if 'explicit pickle_module' in str(error):
            raise CheckpointError(
                f'The checkpoint {name} cannot be read while TORCH_FORCE_WEIGHTS_ONLY_LOAD is set: '
                'unset it; this loader executes nothing of a file in any case.'
            ) from error
        if 'deserialize object' in str(error):
            raise CheckpointError(
                f'The checkpoint {name} holds tensors of a device that is not here: '
                "pass map_location='cpu'."
            ) from error
        raise CheckpointError(
            f'The checkpoint {name} cannot be read: it is damaged, cut short or not a PyTorch '
            f'checkpoint ({_first_line(error)}).'
        ) from error


def _checked(stream: BinaryIO) -> BinaryIO:
    """Keep two branches of ``torch.load`` out of reach: TorchScript archives and tar files."""
    start = stream.read(len(ZIP))
    stream.seek(0)
    if start == ZIP:
        # torch's own reader, so that both agree on what the archive holds.
        if 'constants.pkl' in torch._C.PyTorchFileReader(stream).get_all_records():
            raise ValueError('it is a TorchScript archive')
        _verify_checksums(stream)
        stream.seek(0)
        return stream
    # torch tries tar files only where it finds a file descriptor.
    return io.BytesIO(stream.read())


def _verify_checksums(stream: BinaryIO) -> None:
    """Compare every record with its checksum, which torch's reader does not: bits may have flipped.

    Raises:
        zipfile.BadZipFile: If one is not what was written.
    """
    with zipfile.ZipFile(stream) as archive:
        for record in archive.infolist():
            if record.CRC == 0:  # torch.serialization.set_crc32_options(False) leaves them out
                continue
            with archive.open(record) as content:
                while content.read(CHUNK):
                    pass


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip('.')[:200]


def load_url(
    url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True
) -> Any:
    """Download a checkpoint into torch's cache, if it is not there yet, and load it safely.

    It takes the place of :func:`torch.hub.load_state_dict_from_url`, which loads with
    ``weights_only=False``.

    Raises:
        CheckpointError: If it cannot be downloaded or read.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / Path(urlparse(url).path).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=progress)
        except (URLError, TimeoutError) as error:
            raise CheckpointError(f'The checkpoint {url} cannot be downloaded: {error}.') from error
    return load_checkpoint_file(path, map_location)


class _SafeTorch(ModuleType):
    """``torch`` with the safe ``load``."""

    load = staticmethod(load_checkpoint_file)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def register_safe_loader() -> None:
    """Let mmengine load every checkpoint through :func:`load_checkpoint_file`.

    mmengine's loaders for local files, URLs, model zoos and object stores call ``torch.load`` or
    ``load_url`` by those names of one module, and one another directly, not through
    ``CheckpointLoader``'s schemes; replacing the two names reaches them all and leaves loaders that
    others registered alone. Calling it again changes nothing.
    """
    mmengine_checkpoint.torch = _SafeTorch('torch')
    mmengine_checkpoint.load_url = load_url
