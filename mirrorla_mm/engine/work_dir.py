"""One training at a time in a work dir."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path
from typing import IO

from mmengine.logging import print_log

from .errors import CONTROL, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ['hold_work_dir', 'release_work_dir']

NAME = '.training'
_held: dict[Path, IO[str]] = {}


def hold_work_dir(work_dir: str | os.PathLike) -> None:
    """Keep other processes from training in this folder until this one ends or releases it.

    The lock is the operating system's: it ends with the process, however that ends, and data
    loaders do not inherit it. Holding a folder twice changes nothing.

    Args:
        work_dir (str | os.PathLike): Folder of the run; made if it is missing.

    Raises:
        UserError: If another process is training there, or the folder has a name that checkpoints
            cannot note.
    """
    if CONTROL.search(os.path.abspath(work_dir)):
        raise UserError(
            f'The work dir {work_dir} has characters in its path that are no text, and checkpoints '
            'that note it would be refused: name another folder with --work-dir.'
        )
    folder = Path(work_dir).resolve()
    if fcntl is None or folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / NAME, 'a+', encoding='utf-8', errors='replace')  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(200).strip()
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f'Another training ({holder or "unknown process"}) writes to {work_dir}: wait for '
                'it, or name another folder with --work-dir.'
            ) from None
        print_log(
            f'{work_dir} cannot be locked ({error.strerror}): make sure that no other training '
            'uses it.',
            'current',
            logging.WARNING,
        )
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    _held[folder] = file


def release_work_dir(work_dir: str | os.PathLike) -> None:
    """Let other processes train in this folder again."""
    file = _held.pop(Path(work_dir).resolve(), None)
    if file is not None:
        with contextlib.suppress(OSError):
            file.truncate(0)
        file.close()
