"""Errors that are the user's to mend, and how the command lines show them."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['UserError', 'one_line_errors']


class UserError(Exception):
    """Something that the user can mend; the message is one sentence that says what and where."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one sentence where the user's own mistake is the cause.

    That is a :class:`UserError`, an error of the file system, and whatever was raised while
    mmengine built an object from the config. All else is a defect of the program and keeps its
    traceback, as does everything when ``MIRRORLA_DEBUG`` is set.

    Raises:
        SystemExit: With status 1, after the sentence was written to stderr.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get('MIRRORLA_DEBUG') or not _is_users(error):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f'error: {str(message).strip() or type(error).__name__}', file=sys.stderr)
        sys.exit(1)


def _is_users(error: Exception) -> bool:
    if isinstance(error, (UserError, OSError)):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == 'build_from_cfg' for frame in frames)
