"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.logging import print_log

__all__ = ['PARTIAL', 'whole_file']

PARTIAL = '.partial'
STEM = 200  # bytes that a partial file takes of a name: with its ending it must not be too long


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, sync: bool = True) -> Iterator[Path]:
    """Write a file beside its place, and move it there once it is complete and on the disk.

    A new file takes the permissions of the one it replaces; symbolic links are followed. Where the
    file cannot be replaced as a whole, it is written in place, with a warning: a name with further
    hard links, a mount point of its own, a file in a read-only folder.

    Args:
        path (str | os.PathLike): The file to write; missing folders are made.
        sync (bool): Wait for the disk. Without, a power cut can leave half a file: for the many
            outputs that a run makes again. Defaults to True.

    Yields:
        Path: The file to write instead, ``<name>.<random>.partial``; of a long name its start.

    Raises:
        OSError: If it cannot be written; an earlier file of that name is then untouched.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():  # a device or a pipe
        yield target
        return
    settle = _sync if sync else _leave
    start = os.fsencode(target.name)[:STEM].decode(errors='ignore')
    partial = target.with_name(f'{start}.{uuid.uuid4().hex[:8]}{PARTIAL}')
    try:
        if _create(partial, target):
            yield partial
            settle(partial)
            _publish(partial, target, settle)
        else:
            _warn_in_place(target, 'its folder is read-only')
            yield target
            settle(target)
    except OSError as error:
        message = f'{path} cannot be written: {error.strerror or error}'
        raise OSError(error.errno, message) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _create(partial: Path, target: Path) -> bool:
    """Make the partial file with the permissions of the target; False in a read-only folder."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
        return True
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    earlier = target.stat()
    with contextlib.suppress(OSError):  # only root may give files away
        os.chown(partial, earlier.st_uid, earlier.st_gid)
    partial.chmod(stat.S_IMODE(earlier.st_mode))
    return True


def _publish(partial: Path, target: Path, settle: Callable[[Path], None]) -> None:
    if target.exists() and target.stat().st_nlink > 1:
        reason = 'its name has further hard links'
    else:
        try:
            partial.replace(target)
            settle(target.parent)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            reason = 'it is a mount point'
    _warn_in_place(target, reason)
    shutil.copyfile(partial, target)
    settle(target)


def _sync(path: Path) -> None:
    """Wait until the content of a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not on this file system
            raise
    finally:
        os.close(handle)


def _leave(path: Path) -> None:
    """Let the system write a file to the disk when it likes."""


def _warn_in_place(target: Path, reason: str) -> None:
    print_log(
        f'{target} is written in place, as {reason}: an interruption can leave half a file.',
        'current',
        logging.WARNING,
    )
