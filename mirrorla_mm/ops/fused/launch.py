"""How kernels are tuned, split over the device and launched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs

INTERPRETED = knobs.runtime.interpret

# (BLOCK_N, warps, stages). Few: every new key times them all once, then the disk remembers.
CONFIGS = {
    'light': ((32, 4, 1), (64, 4, 1), (64, 8, 1)),
    'state': ((32, 4, 2), (64, 4, 2), (64, 8, 2), (128, 8, 2)),
    'output': ((32, 4, 2), (64, 4, 2), (128, 4, 2), (128, 8, 2)),
    'backward': ((16, 4, 1), (32, 4, 1), (32, 8, 1), (64, 8, 1)),
}
INTERPRETER_CONFIG = (32, 4, 1)

PROGRAMS_PER_MULTIPROCESSOR = 4
SMALLEST_CHUNK = 256
INTERPRETER_CHUNK = 64
_KEY = (
    'chunk',
    'HEAD_DIM',
    'DOT',
    'PRECISION',
    'FEATURE_MAP',
    'REDUCE',
    'WRITE',
    'WRITE_K',
    'WRITE_V',
)


def autotune(kind: str) -> Callable:
    """Choose among ``CONFIGS[kind]``, keyed on dtypes, d and a bucket of N (the chunk)."""

    def decorate(kernel):
        choices = (INTERPRETER_CONFIG,) if INTERPRETED else CONFIGS[kind]
        configs = [triton.Config({'BLOCK_N': n}, num_warps=w, num_stages=s) for n, w, s in choices]
        key = [name for name in _KEY if name in kernel.arg_names]
        cached = 'cache_results' in inspect.signature(triton.autotune).parameters
        return triton.autotune(configs, key, **({'cache_results': True} if cached else {}))(kernel)

    return decorate


def chunk_size(tokens: int, heads: int, device: torch.device) -> int:
    """Tokens per split: a power of two such that heads times splits fill the device a few times."""
    if INTERPRETED:
        return INTERPRETER_CHUNK
    programs = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(device)
    return max(SMALLEST_CHUNK, triton.next_power_of_2(triton.cdiv(tokens * heads, programs)))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != 'cuda':
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


class Launch(NamedTuple):
    """A launch that :func:`record_launches` kept instead of running it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


_record: list[Launch] | None = None


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Keep launches instead of running them: with tensors on the ``meta`` device, a dry run."""
    global _record
    previous, _record = _record, []
    try:
        yield _record
    finally:
        _record = previous


def launch(kernel, grid: tuple[int, ...], **arguments) -> None:
    """Run a kernel on the device of its tensors."""
    if _record is not None:
        _record.append(Launch(kernel, grid, arguments))
        return
    device = next(a.device for a in arguments.values() if isinstance(a, torch.Tensor))
    with torch.cuda.device(device if device.type == 'cuda' else -1):
        kernel[grid](**arguments)
