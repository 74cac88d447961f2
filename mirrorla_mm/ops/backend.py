"""Which implementation of linear attention runs.

- ``'torch'``: the plain formulas, the reference; it always can.
- ``'lean'``: the same sums in fewer passes over the tokens; on a CPU without gradients strip by
  strip.
- ``'triton'``: kernels fused in Triton.
- ``'graph'``: few passes beside the products, for exported graphs; never chosen unless forced.

A backend registers itself with a function that says why it cannot take some inputs; among those
that can, the last registered wins. ``MIRRORLA_BACKEND=torch|lean|triton|graph`` or
:func:`use_backend` force one. Forcing one that cannot run is an error that says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .options import Options

ENVIRONMENT_VARIABLE = 'MIRRORLA_BACKEND'

logger = logging.getLogger('mirrorla_mm')


class BackendError(ValueError, RuntimeError):
    """The backend that is asked for does not exist, or cannot run."""


class Heads(NamedTuple):
    """Shape, dtype and device of queries, keys or values that are not projected yet.

    Attributes:
        shape (tuple[int, ...]): (B, H, N, d).
        dtype (torch.dtype): After the projection, so autocast's where that is on.
        device (torch.device): Of the tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Backend(NamedTuple):
    """One implementation of linear attention.

    Attributes:
        run: :func:`~mirrorla_mm.ops.mirror_attention` of q, k, v, theta, theta_k and
            :class:`~.options.Options`.
        why_not: Takes the same, where q, k and v may be :class:`Heads`; None where the backend can
            run, else the reason in a few words.
        stepwise: Whether methods beyond the operator run under it as well, by their own steps.
        strips: Whether steps may go strip by strip, and in fewer passes than the plain form.
        packed: The same of a projection (B, N, 3 or 4, H, d), theta, theta_k and options: the
            output, v and maybe the gate; None where a backend gains nothing from it.
    """

    run: Callable[..., Tensor]
    why_not: Callable[..., str | None]
    stepwise: bool = False
    strips: bool = False
    packed: Callable[..., tuple[Tensor, ...]] | None = None


_backends: dict[str, Backend] = {}
_forced: ContextVar[str | None] = ContextVar('mirrorla_mm backend', default=None)
# torch.compile can neither read nor watch a context variable: for it, the name that was set last.
_compiled: str | None = None


def register_backend(name: str, backend: Backend) -> None:
    """Add an implementation, preferred to those registered before it."""
    _backends[name] = backend


def available_backends() -> tuple[str, ...]:
    """Names of the registered backends, the reference first."""
    return tuple(_backends)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend within a ``with`` block, or with None let the choice be automatic.

    It holds for the thread or asynchronous task that enters the block, and for all linear
    attention, whatever its method. Under ``'torch'`` layers and position embedding take their plain
    form too.

    Raises:
        BackendError: If no backend has that name.
    """
    global _compiled
    if name is not None:
        _check_name(name)
    compiling = torch.compiler.is_compiling()
    before = _compiled if compiling else _forced.get()
    token = None if compiling else _forced.set(name)
    _compiled = name
    try:
        yield
    finally:
        if token is not None:
            _forced.reset(token)
        _compiled = before


def forced_backend() -> str | None:
    """The backend that :func:`use_backend` or the environment asks for, if any.

    Raises:
        BackendError: If no backend has that name.
    """
    forced = _compiled if torch.compiler.is_compiling() else _forced.get()
    name = forced or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is not None:
        _check_name(name)
    return name


def symbolic() -> bool:
    """Whether a compiler or exporter records this call.

    It fuses the plain form and plans memory itself. A loop over strips would tie its graph to one
    size, and most of them do not know complex numbers.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def plain_form() -> bool:
    """Whether everything has to run in its plain form: for a compiler, or as the reference."""
    return symbolic() or forced_backend() == 'torch'


def for_graphs() -> bool:
    """Whether modules take the form that runtimes of exported graphs run fastest."""
    return forced_backend() == 'graph'


def is_ordinary(x: Tensor) -> bool:
    """Whether a tensor is one of torch's own, with a number at each place.

    Fake tensors have no numbers to go through; sharded, sparse and nested ones have
    products of their own.
    """
    return type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_nested


def is_transformed(*tensors: Tensor | Heads | None) -> bool:
    """Whether a transform of :mod:`torch.func` runs, or one of these has a forward derivative.

    Neither knows what writes to ``out``, nor a backward pass of our own that has no rule for it.
    """
    if symbolic():
        return False
    real = [x for x in tensors if isinstance(x, Tensor)]
    active = torch._C._are_functorch_transforms_active()
    return active or any(forward_ad.unpack_dual(x).tangent is not None for x in real)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the device's current stream."""
    if device.type != 'cuda':
        return False
    with torch.cuda.device(device):  # torch asks the current device's
        return torch.cuda.is_current_stream_capturing()


def is_single_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer of ordinary tensors computes in single precision on a CPU, in no graph."""
    if plain_form() or for_graphs() or not (is_ordinary(x) and is_ordinary(weight)):
        return False
    single = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled('cpu')
    return single and x.device.type == 'cpu'


def select_backend(
    q: Tensor | Heads,
    k: Tensor | Heads,
    v: Tensor | Heads,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options | None,
) -> Backend:
    """Choose the implementation for these arguments of :attr:`Backend.run`.

    Without ``options``, for a method that is not the operator's but has its own steps.

    Raises:
        BackendError: If a backend is forced that does not exist or cannot take them.
    """

    def why_not(backend: Backend) -> str | None:
        if options is None and not backend.stepwise:
            return 'it knows the feature maps mirror, elu and relu alone'
        return backend.why_not(q, k, v, theta, theta_k, options)

    name = forced_backend()
    if name is not None:
        reason = why_not(_backends[name])
        if reason:
            raise BackendError(
                f"The backend '{name}' is forced but cannot run: {reason}. One that can is chosen "
                f'without {ENVIRONMENT_VARIABLE} and use_backend.'
            )
        return _backends[name]
    for candidate, backend in reversed(_backends.items()):
        reason = why_not(backend)
        if reason is None:
            return backend
        if not torch.compiler.is_compiling():  # a log line would break the graph
            _log_once(candidate, reason)
    raise RuntimeError('No backend is registered for linear attention.')


def _check_name(name: str) -> None:
    if name not in _backends:
        raise BackendError(
            f"Unknown backend '{name}' ({ENVIRONMENT_VARIABLE} or use_backend); "
            f'choose from {", ".join(_backends)}.'
        )


@cache
def _log_once(name: str, reason: str) -> None:
    logger.debug('Linear attention does not use %s: %s', name, reason)
