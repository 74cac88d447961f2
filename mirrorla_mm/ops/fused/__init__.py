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
once more, 2 on top.

``mirrorla_mm/analysis/traffic.py`` counts it in bytes, and what splits and statistics add. The
backward pass is derived in docs/mirror_attention_backward.md.

Importing this module needs torch alone; triton is imported by the first call.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from ..backend import Backend, forced_backend, register_backend
from ..options import Options

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD_DIM = 128
OLDEST_CAPABILITY = 8
OLDEST_TRITON = (3, 6)  # of those that the tests were run with


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
    if TRITON_REASON is not None:
        return TRITON_REASON
    if q.device.type == 'cuda':
        return _device_reason(q.device)
    if os.environ.get('TRITON_INTERPRET') != '1':
        return f'the tensors are on the {q.device.type}, not on a GPU'
    if forced_backend() != 'triton':
        return 'the interpreter runs only where it is asked for'
    return None


def _device_reason(device: torch.device) -> str | None:
    if torch.version.hip:
        return 'the kernels are for NVIDIA GPUs'
    # The only query that torch.compile folds into a constant.
    properties = torch.cuda.get_device_properties(device)
    if properties.major < OLDEST_CAPABILITY:
        found = f'{properties.major}.{properties.minor}'
        return f'the GPU needs compute capability {OLDEST_CAPABILITY}.0 or newer, got {found}'
    return None


register_backend('triton', Backend(_run, _why_not))
