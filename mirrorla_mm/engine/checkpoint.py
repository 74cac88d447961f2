"""Loading checkpoints with any torch, and refusing those that could run code.

Since torch 2.6 ``torch.load`` refuses mmengine's own checkpoints (open-mmlab/mmengine#1655);
before, it ran whatever a file told it to. :func:`load_checkpoint_file` does neither: see
:mod:`.safe_pickle`. :func:`register_safe_loader` puts it under every loader of mmengine, and so
under ``load_checkpoint``, ``Runner.load_checkpoint`` and ``resume``,
``init_cfg=dict(type='Pretrained')`` and the tools and inferencers of mmdet and mmseg.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections import OrderedDict
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor

from . import safe_pickle
from .errors import UserError
from .safetensors_file import is_safetensors, read_safetensors
from .torch_file import read_torch_file

__all__ = [
    'LOADING_ERRORS',
    'CheckpointError',
    'DamagedCheckpointError',
    'UnsafeCheckpointError',
    'load_checkpoint_file',
    'load_url',
    'misfit',
    'other_numbers',
    'register_safe_loader',
    'require_file',
]


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be used; the message names the file."""


class DamagedCheckpointError(CheckpointError):
    """A file is cut short, damaged or no checkpoint at all."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for something that could run code; nothing of it was executed."""


def load_checkpoint_file(file: str | os.PathLike | BinaryIO, map_location: Any = None) -> Any:
    """Load a file of :func:`torch.save` or of safetensors, without executing anything in it.

    Tensors, containers, numbers, text and dates are read, NumPy arrays and scalars without objects
    in them, and mmengine's ``HistoryBuffer`` and ``ConfigDict``; all else is refused, but for what
    the user allows with :func:`torch.serialization.add_safe_globals`. Both formats of
    ``torch.save`` are read; TorchScript archives and the tar files of torch 0.1 are not. Checksums
    are verified, which only the newer format has.

    Args:
        file (str | os.PathLike | BinaryIO): The path, a URL that mmengine knows (``https://``,
            ``torchvision://``, ...), or an open binary file.
        map_location (Any): As for :func:`torch.load`.

    Returns:
        Any: What was saved; for checkpoints a dict, for safetensors one with ``state_dict`` and
        ``meta``. The text of a config in it is not handed out by key, see :class:`_Quoted`.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If the file asks for a type or function that is not on the list, or
            for far more memory or time than its size explains.
        DamagedCheckpointError: If it is damaged, cut short or no checkpoint.
        CheckpointError: If it lies on a device that is not here, or cannot be downloaded.
    """
    if not isinstance(file, (str, os.PathLike)):
        return _load_stream(file, str(getattr(file, 'name', 'the given stream')), map_location)
    if '://' in str(file):
        return CheckpointLoader.load_checkpoint(str(file), map_location)
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
        read = read_safetensors if is_safetensors(stream) else read_torch_file
        content = read(stream, map_location)
    except safe_pickle.ForbiddenGlobal as error:
        raise UnsafeCheckpointError(_forbidden(name, error)) from None
    except safe_pickle.Refused as error:
        raise UnsafeCheckpointError(
            f'The checkpoint {name} was refused and nothing in it was executed: {error}.'
        ) from None
    except (MemoryError, torch.cuda.OutOfMemoryError, UserError):
        raise
    except Exception as error:
        if 'deserialize object' in str(error):
            raise CheckpointError(
                f'The checkpoint {name} holds tensors of a device that is not here: '
                "pass map_location='cpu'."
            ) from None
        raise DamagedCheckpointError(
            f'The checkpoint {name} cannot be read: it is damaged, cut short or not a '
            f'PyTorch checkpoint ({_first_line(error)}).'
        ) from None
    return _without_programs(content)


def _forbidden(name: str, error: safe_pickle.ForbiddenGlobal) -> str:
    message = (
        f'The checkpoint {name} was refused and nothing in it was executed: it asks for '
        f'{error.name}, which is not among the types that a checkpoint may hold and could run '
        'code on this machine'
    )
    package = error.name.partition('.')[0]
    if package == 'torch':
        message += '; if you trust the file, save the state_dict() of its model in one of its own'
    elif error.can_be_allowed and package not in sys.stdlib_module_names:
        message += (
            '; if you trust both, let a module of custom_imports call '
            f'torch.serialization.add_safe_globals([{error.name}])'
        )
    return f'{message}.'


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip('.')[:200]


class _Quoted(dict):
    """Metadata with the text of a config, which is a program: nobody gets it to execute it.

    mmengine's inferencers execute ``meta['cfg']`` where no config was given. Iteration and ``get``
    yield the text, for whoever wants to read it.
    """

    def __getitem__(self, key: Any) -> Any:
        if key == 'cfg':
            raise CheckpointError(
                'No config was given, and the one inside the checkpoint is not used because it is '
                'a program that its author wrote: name a config file.'
            )
        return super().__getitem__(key)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain mapping, which loads everywhere."""
        return OrderedDict, (), None, None, iter(self.items())


def _without_programs(content: Any) -> Any:
    """Take the configs out of reach that mmengine executes.

    ``Runner.resume`` executes ``meta['config']``, which mmcv wrote; inferencers ``meta['cfg']`` and
    ``message_hub['runtime_info']['cfg']``.
    """
    if not isinstance(content, dict):
        return content
    hub = content.get('message_hub')
    for owner, key in ((content, 'meta'), (hub, 'runtime_info')):
        held = owner.get(key) if isinstance(owner, dict) else None
        if isinstance(held, dict):
            held.pop('config', None)  # by its own type: dict's breaks an OrderedDict
            if 'cfg' in held:
                dict.__setitem__(owner, key, _Quoted(dict.items(held)))
    return content


# What ``load_state_dict`` raises for entries of another shape, kind or type.
LOADING_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError)


def other_numbers(theirs: Tensor, ours: Tensor) -> str | None:
    """What loading would do without a word to numbers of another kind; None where it is sound.

    Args:
        theirs (Tensor): Of a file.
        ours (Tensor): That it would be copied into.
    """
    if theirs.is_complex() and not ours.is_complex():
        return 'is complex there, and loading would drop the imaginary part'
    if ours.is_floating_point() and not theirs.is_floating_point():
        kind = str(theirs.dtype).removeprefix('torch.')
        return f'holds numbers of {kind} there, as a quantized or a converted file does'
    return None


def misfit(error: Exception) -> str:
    """Say in half a sentence why ``load_state_dict`` refused the entries of a file."""
    mismatch = re.search(r'size mismatch for (\S+): .*?(\[.*?\]).*?(\[.*?\])', str(error), re.S)
    if mismatch is None:
        return (str(error).strip() or type(error).__name__).splitlines()[-1].strip(' .')
    key, theirs, ours = mismatch.groups()
    key = key.replace('_fsdp_wrapped_module.', '')
    return f'{key} has the shape {theirs} there and {ours} in this config'


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
    weights_only: bool = True,
) -> Any:
    """Download a checkpoint into torch's cache, if it is not there yet, and load it safely.

    It takes the place of :func:`torch.hub.load_state_dict_from_url`, which loads with
    ``weights_only=False``. A file in the cache that is cut short is downloaded again, and one that
    arrives cut short does not stay there.

    Args:
        url (str): Where the file is.
        model_dir (str, optional): The cache. Defaults to torch's.
        map_location (Any): As for :func:`torch.load`.
        progress (bool): Show a bar.
        check_hash (bool): Compare the file with the hash in its name, ``NAME-HASH.pth``.
        file_name (str, optional): Its name in the cache. Defaults to that of the URL, with a digest
            of the URL where the name has no hash: ``epoch_12.pth`` is the name of many files. One
            that somebody else has put there under the plain name is taken with a warning.
        weights_only (bool): Of no effect: no file is executed.

    Raises:
        CheckpointError: If it cannot be downloaded or read.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / file_name if file_name else _own_place(url, folder)
    cached = path if file_name else _place_in_cache(url, path)
    if cached.exists():
        try:
            return load_checkpoint_file(cached, map_location)
        except DamagedCheckpointError as error:
            print_log(f'{error} It is downloaded again.', 'current', logging.WARNING)
    _download(url, path, progress, check_hash)
    try:
        return load_checkpoint_file(path, map_location)
    except DamagedCheckpointError as error:
        path.unlink()
        raise CheckpointError(f'The checkpoint {url} did not arrive whole: {error}') from None


def _own_place(url: str, folder: Path) -> Path:
    """Where a download goes: no other URL's does."""
    name = Path(urlparse(url).path)
    if re.search(r'-[0-9a-f]{8,}$', name.stem):
        return folder / name.name
    return folder / f'{name.stem}.{hashlib.sha256(url.encode()).hexdigest()[:8]}{name.suffix}'


def _place_in_cache(url: str, path: Path) -> Path:
    """A URL's own place or, on machines without a network, a file that people copied there."""
    plain = path.with_name(Path(urlparse(url).path).name or path.name)
    if path.exists() or not plain.is_file():
        return path
    print_log(
        f'{plain} is taken for {url}, as it has its name; delete it if it is another file.',
        'current',
        logging.WARNING,
    )
    return plain


def _download(url: str, path: Path, progress: bool, check_hash: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match = torch.hub.HASH_REGEX.search(path.name) if check_hash else None
    try:
        torch.hub.download_url_to_file(url, str(path), match and match[1], progress=progress)
    except (OSError, HTTPException, ValueError, RuntimeError) as error:
        raise CheckpointError(f'The checkpoint {url} cannot be downloaded: {error}.') from error


def _load(
    file: str | os.PathLike | BinaryIO, map_location: Any = None, weights_only: bool | None = None
) -> Any:
    """Take the place of ``torch.load``; onedl's mmengine asks for ``weights_only`` by itself."""
    return load_checkpoint_file(file, map_location)


class _SafeTorch(ModuleType):
    """``torch`` with the safe ``load``."""

    load = staticmethod(_load)

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
