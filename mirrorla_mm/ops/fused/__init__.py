"""The operator fused in Triton, forwards and backwards: the backend ``'triton'``.

Passes over the tokens, each over all heads of all images:

1. variance of q and of k, for the angles                      (mirror map, variance-aware)
2. mean of phi(q)                                              (rank augmentation)
3. ``S = sum w_t R(phi(k_t))^T v_t``, ``m = sum w_t phi(k_t)`` with an online softmax for w
4. ``o_t = R(phi(q_t)) S / (phi(q_t) . m + 1e-6)``

and backwards, with features, rotations and weights computed again:

5. read q, do: reduce dS, dm and the part of the angles' gradient that is known
6. read k, v: reduce dqbar and the angles' gradient, write dv
7. read k, v: write dk       (in pass 6 where the angle does not depend on the variance)
8. read q, do: write dq      (in pass 5 where neither the variance nor qbar matters)

The floor, in tensors of B x H x N x d numbers that have to cross the memory bus, as every sum has
to be complete before the next pass begins:

===============================  =======  ========
mode                             forward  backward
===============================  =======  ========
rank-augmented, variance-aware         7        11
variance-aware                         6        11
rank-augmented                         5         9
plain                                  4         7
===============================  =======  ========

Heads with more than 64 channels write dv in a pass of its own, but for bfloat16: k and v are read
once more, 2 on top. In float16 every backward pass over the queries reads the output, too.

A layer hands over its projection whole (``Backend.packed``): the gradients are written into one
tensor, and what v's and the gate's further uses give is added there.

``mirrorla_mm/analysis/traffic.py`` counts it in bytes, and what splits and statistics add. The
backward pass is derived in docs/mirror_attention_backward.md.

Importing this module needs torch alone; triton is imported by the first call.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..backend import Backend, capturing, forced_backend, is_transformed, register_backend
from ..options import Options

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD_DIM = 128
OLDEST_CAPABILITY = 8
OLDEST_TRITON = (3, 6)  # of those that the tests were run with
# Shared memory in bytes that every GPU of these capabilities has, and that which some kernels take
# in float32 beyond 64 channels (docs/benchmarks/kernels.md).
ANY_SHARED_MEMORY, WIDE_SHARED_MEMORY = 99 * 1024, 160 * 1024


def _triton_reason() -> str | None:
    if find_spec('triton') is None:
        return 'triton is not installed'
    try:
        found = version('triton')
    except PackageNotFoundError:  # a nightly build goes by another name
        return None
    if tuple(map(int, found.split('.')[:2])) < OLDEST_TRITON:
        return f'triton needs to be {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]} or newer, got {found}'
    return None


TRITON_REASON = _triton_reason()


def _run(*arguments) -> Tensor:
    from .operator import mirror_attention_fused

    return mirror_attention_fused(*arguments)


def _run_packed(*arguments) -> tuple[Tensor, ...]:
    from .operator import mirror_attention_packed

    return mirror_attention_packed(*arguments)


def _why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options,
) -> str | None:
    channels = q.shape[-1]
    if not q.shape == k.shape == v.shape:
        shapes = ', '.join(str(tuple(x.shape)) for x in (q, k, v))
        return f'q, k and v need one shape, got {shapes}'
    if any(x.dtype not in DTYPES for x in (q, k, v)):
        return f'it takes float32, float16 and bfloat16, got {q.dtype}, {k.dtype} and {v.dtype}'
    if channels > LARGEST_HEAD_DIM:
        return f'a head may have {LARGEST_HEAD_DIM} channels at most, got {channels}'
    if options.hw_shape and channels % 4:
        return f'RoPE needs a multiple of 4 channels per head, got {channels}'
    if is_transformed(q, k, v, theta, theta_k):
        return 'it has neither forward-mode derivatives nor rules for torch.func'
    if TRITON_REASON is not None:
        return TRITON_REASON
    if q.device.type == 'cuda':
        wide = channels > 64 and any(x.dtype == torch.float32 for x in (q, k, v))
        return _device_reason(q.device, WIDE_SHARED_MEMORY if wide else ANY_SHARED_MEMORY)
    if os.environ.get('TRITON_INTERPRET') != '1':
        return f'the tensors are on the {q.device.type}, not on a GPU'
    if forced_backend() != 'triton':
        return 'the interpreter runs only where it is asked for'
    return None


def _device_reason(device: torch.device, shared_memory: int) -> str | None:
    if torch.version.hip:
        return 'the kernels are for NVIDIA GPUs'
    # The only query that torch.compile folds into a constant.
    properties: Any = torch.cuda.get_device_properties(device)
    if properties.major < OLDEST_CAPABILITY:
        found = f'{properties.major}.{properties.minor}'
        return f'the GPU needs compute capability {OLDEST_CAPABILITY}.0 or newer, got {found}'
    if properties.shared_memory_per_block_optin < shared_memory:
        reason = (
            f'more than 64 float32 channels per head need {shared_memory} bytes of shared memory, '
            f'the GPU has {properties.shared_memory_per_block_optin}; float16 and bfloat16 '
            '(autocast) fit'
        )
        if not torch.compiler.is_compiling():
            _warn_once(f'The fused mirror attention does not run: {reason}.')
        return reason
    # A compiler's graph holds the operator, whatever the machine.
    return None if torch.compiler.is_compiling() else _launch_reason(device)


_launch_reasons: dict[torch.device, str | None] = {}


def _launch_reason(device: torch.device) -> str | None:
    """Why no kernel of Triton's can be launched, found by one that does nothing.

    A capture would record that one, so there only what is known already counts.
    """
    if device not in _launch_reasons and not capturing(device):
        _launch_reasons[device] = _found_launch_reason(device)
    return _launch_reasons.get(device)


def _found_launch_reason(device: torch.device) -> str | None:
    from .launching import launch_nothing

    try:
        launch_nothing(device)
    except Exception as error:  # Triton's own, a C compiler's or a loader's
        first_line, *_ = f'{type(error).__name__}: {error}'.splitlines()
        reason = (
            f'Triton, which needs a C compiler and the headers of Python, cannot launch kernels on '
            f'{device} ({first_line})'
        )
        _warn_once(f'The fused mirror attention does not run: {reason}.')
        return reason
    return None


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


register_backend('triton', Backend(_run, _why_not, packed=_run_packed))
