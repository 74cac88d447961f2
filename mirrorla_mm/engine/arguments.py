"""Types of command-line arguments that the tools share."""

from __future__ import annotations

from argparse import ArgumentTypeError

__all__ = ['positive_int']


def positive_int(text: str) -> int:
    """Read a whole number from 1 on.

    Raises:
        ArgumentTypeError: If it is none; argparse makes one sentence of it.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f'{text!r} is no whole number from 1 on')
    return number
