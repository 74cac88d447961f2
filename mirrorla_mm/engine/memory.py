"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os

__all__ = ['keep_freed_memory']

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next pass instead of returning it to the system.

    By default it returns large blocks or not, depending on what went before, and a training step
    that has to fault all its pages in again takes up to half as long again. The process stays as
    large as it was at its peak.

    Returns:
        bool: Whether this system's C library took it: glibc does, but for older versions of it.
    """
    libc = ctypes.CDLL(None) if os.name == 'posix' else None
    if not hasattr(libc, 'mallopt'):
        return False
    return bool(libc.mallopt(M_MMAP_THRESHOLD, 2**30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
