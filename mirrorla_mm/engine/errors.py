"""Errors that are the user's to mend, and how the command lines show them."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from .. import registry
from ..ops import BackendError

__all__ = ['CONTROL', 'UserError', 'hide_import_warnings', 'one_line_errors', 'printable']

# Characters that a terminal obeys instead of showing, and halves of characters, which cannot be
# written. Blanks and line ends are text.
CONTROL = re.compile('[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]')


def printable(text: str) -> str:
    """Write control characters as escapes: names and texts of a file must not steer a terminal."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text).replace('\r', r'\r')


class UserError(Exception):
    """Something that the user can mend; the message is one sentence that says what and where.

    The message may quote a file: what would steer a terminal is escaped.
    """

    def __str__(self) -> str:
        """Give the message, printable."""
        return printable(super().__str__())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one sentence where the user's own mistake is the cause.

    That is a :class:`UserError`, an error of the file system, a backend that cannot run, and
    whatever was raised while mmengine built an object from the config or took over a checkpoint.
    All else is a defect of the program and keeps its traceback, as does everything when
    ``MIRRORLA_DEBUG`` is set. Warnings of upstream's imports are hidden.

    Raises:
        SystemExit: With status 1, after the sentence was written to stderr.
    """
    hide_import_warnings()
    try:
        yield
    except Exception as error:
        if os.environ.get('MIRRORLA_DEBUG') or not _is_users(error):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        text = printable(str(message).strip()) or type(error).__name__
        text = _with_prefix(text) or text
        if not isinstance(error, (UserError, OSError)) and LOADING in _functions(error):
            text = f'The checkpoint cannot be used: {type(error).__name__}: {text}'
        print(f'error: {text}', file=sys.stderr)
        sys.exit(1)


def hide_import_warnings() -> None:
    """Hide the warning that ``pkg_resources`` is deprecated.

    mmengine looks for packages by it, and so brings the warning again and again.
    """
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)


LOADING = 'load_or_resume'  # of mmengine's runners


def _with_prefix(text: str) -> str | None:
    """What to write for a class of this package that a config names without its prefix."""
    found = re.match(r'(\w+) is not in the \S+ registry', text)
    ours = (value for value in vars(registry).values() if isinstance(value, registry.Registry))
    if found is None or not any(found[1] in each.module_dict for each in ours):
        return None
    return f"'{found[1]}' is a class of this package: write '{registry.SCOPE}.{found[1]}'."


def _is_users(error: Exception) -> bool:
    known = isinstance(error, (UserError, OSError, BackendError))
    return known or bool({'build_from_cfg', LOADING} & _functions(error))


def _functions(error: Exception) -> set[str]:
    """The names of the functions that an error came through."""
    return {frame.name for frame in traceback.extract_tb(error.__traceback__)}
