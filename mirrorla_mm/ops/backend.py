"""Which implementation of an operator runs.

The reference in plain PyTorch always can. A faster backend registers itself with a function that
says why it cannot take some inputs; among those that can, the last registered wins.

``MIRRORLA_BACKEND=torch|triton`` or :func:`use_backend` force one. Forcing one that cannot run is
an error that says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = 'MIRRORLA_BACKEND'

logger = logging.getLogger('mirrorla_mm')


class Backend(NamedTuple):
    """One implementation of :func:`~mirrorla_mm.ops.mirror_attention`.

    Attributes:
        run: Takes q, k, v, theta, theta_k and the :class:`~.options.Options`.
        why_not: Takes the same; None where the backend can run, else the reason in a few words.
    """

    run: Callable[..., Tensor]
    why_not: Callable[..., str | None]


_backends: dict[str, Backend] = {}
_forced: str | None = None


def register_backend(name: str, backend: Backend) -> None:
    """Add an implementation, preferred to those registered before it."""
    _backends[name] = backend


def available_backends() -> tuple[str, ...]:
    """Names of the registered backends, the reference first."""
    return tuple(_backends)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend within a ``with`` block, or with None let the choice be automatic.

    Raises:
        ValueError: If no backend has that name.
    """
    global _forced
    if name is not None:
        _check_name(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced_backend() -> str | None:
    """The backend that :func:`use_backend` or the environment asks for, if any.

    Raises:
        ValueError: If no backend has that name.
    """
    name = _forced or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is not None:
        _check_name(name)
    return name


def select_backend(*arguments) -> Backend:
    """Choose the implementation for the arguments of :attr:`Backend.run`.

    Raises:
        RuntimeError: If a backend is forced that cannot take them.
        ValueError: If the forced backend does not exist.
    """
    name = forced_backend()
    if name is not None:
        reason = _backends[name].why_not(*arguments)
        if reason:
            raise RuntimeError(f"The backend '{name}' is forced but cannot run: {reason}.")
        return _backends[name]
    for candidate, backend in reversed(_backends.items()):
        reason = backend.why_not(*arguments)
        if reason is None:
            return backend
        if not torch.compiler.is_compiling():  # a log line would break the graph
            _log_once(candidate, reason)
    raise RuntimeError('No backend is registered for mirror_attention.')


def _check_name(name: str) -> None:
    if name not in _backends:
        raise ValueError(
            f"Unknown backend '{name}' ({ENVIRONMENT_VARIABLE} or use_backend); "
            f'choose from {", ".join(_backends)}.'
        )


@cache
def _log_once(name: str, reason: str) -> None:
    logger.debug('mirror_attention does not use %s: %s', name, reason)
