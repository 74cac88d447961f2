"""How kernels are tuned, split over the device and launched."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs

INTERPRETED = knobs.runtime.interpret

# (BLOCK_N, warps, stages). Few: every new key times them all once, then the disk remembers.
CONFIGS = {
    'light': ((32, 4, 1), (64, 4, 1), (64, 8, 1)),
    'product': ((32, 4, 2), (64, 4, 2), (32, 8, 2), (64, 8, 2), (128, 8, 2)),
    'backward': ((16, 4, 2), (32, 4, 2), (16, 8, 2), (32, 8, 2)),
}
INTERPRETER_CONFIG = (32, 4, 1)

# Where none of these keeps its operands in registers (float32 with more than 64 channels).
SMALLEST = {'light': (32, 8, 1), 'product': (16, 8, 1), 'backward': (16, 8, 2)}

# Words a thread may hold of a tile and of a (d, d) matrix, both operands of products. Beyond these
# registers spill on one architecture or another (tools/analysis_tools/kernel_report.py).
LARGEST_TILE = {'light': 64, 'product': 32, 'backward': 16}
LARGEST_MATRIX = {'light': math.inf, 'product': 128, 'backward': 64}

# Programs per multiprocessor, where none of them reads or leaves a (d, d) matrix.
MANY_PROGRAMS = 8
LARGEST_BLOCK = 128
SMALLEST_CHUNK = 256
INTERPRETER_CHUNK = 64
_KEY = (
    'regime',
    'HEAD_DIM',
    'PRECISION',
    'FEATURE_MAP',
    'RANK_AUGMENTED',
    'VARIANCE_AWARE',
    'ROPE',
    'REDUCE',
    'WRITE',
    'WRITE_K',
    'WRITE_V',
)
LAYOUTS = ('channels', 'tokens', 'mixed')


def autotune(kind: str) -> Callable:
    """Choose among ``CONFIGS[kind]``; triton adds the dtypes of all tensors to the key.

    The key is written as JSON, so it holds numbers, strings and flags alone.
    """

    def decorate(kernel):
        configs = [_config(INTERPRETER_CONFIG)] if INTERPRETED else [*map(_config, CONFIGS[kind])]
        key = [name for name in _KEY if name in kernel.arg_names]
        options = {'prune_configs_by': {'early_config_prune': partial(_without_spills, kind)}}
        if 'cache_results' in inspect.signature(triton.autotune).parameters:
            options['cache_results'] = True
        return triton.autotune(configs, key, **options)(kernel)

    return decorate


def _config(choice: tuple[int, int, int]) -> triton.Config:
    block, warps, stages = choice
    return triton.Config({'BLOCK_N': block}, num_warps=warps, num_stages=stages)


def configurations(launch: Launch) -> list[triton.Config]:
    """Those that tuning tries for a launch; one without parameters for a kernel that has none."""
    prune = getattr(launch.kernel, 'early_config_prune', None)
    if prune is None:
        return [triton.Config({})]
    return prune(launch.kernel.configs, {}, **launch.arguments)


def _without_spills(kind: str, configs: list, arguments: dict, **constants: Any) -> list:
    """Those configurations whose operands fit in registers; the smallest if none does."""
    arguments = arguments | constants
    width = arguments['BLOCK_D']
    words = {'bf16': 1, 'tf32x3': 3}.get(arguments.get('PRECISION', ''), 2)

    def load(config) -> float:
        threads = 32 * config.num_warps
        tile = config.kwargs['BLOCK_N'] * width * words / threads / LARGEST_TILE[kind]
        matrix = width * width * words / threads / LARGEST_MATRIX[kind]
        return max(tile, matrix)

    return [config for config in configs if load(config) <= 1] or [_config(SMALLEST[kind])]


class Split(NamedTuple):
    """How the tokens of every head are dealt out to programs.

    Attributes:
        chunk (int): Tokens of a split, a multiple of every ``BLOCK_N``.
        count (int): Splits of a head.
    """

    chunk: int
    count: int  # type: ignore[assignment]  # tuple has a method of that name


def layout(*tensors: torch.Tensor) -> str:
    """Which neighbours in memory are read together: channels, tokens, or not the same in all."""
    for name, dimension in (('channels', 3), ('tokens', 2)):
        if all(x.stride(dimension) == 1 for x in tensors):
            return name
    return 'mixed'


def regime(chunk: int, layout: str) -> int:
    """One number for the tuner's key: what no kernel reads, but decides which choice is fastest.

    The layout, and whether a program walks few tokens (up to 512), some, or many (beyond 2048). It
    is no constant of the kernels, so a new length times the choices again but compiles nothing.
    """
    length = (chunk > 512) + (chunk > 2048)
    return LAYOUTS.index(layout) * 3 + length


def few_programs(width: int) -> int:
    """Programs per multiprocessor where each reads or leaves a matrix of ``width`` squared numbers.

    As many as keep those small beside its tokens, two at least to hide each other's waiting.
    """
    return max(2, 128 // width)


def split_tokens(tokens: int, heads: int, device: torch.device, per_multiprocessor: int) -> Split:
    """Fill the device about ``per_multiprocessor`` times over with heads times splits."""
    multiple, smallest, programs = INTERPRETER_CHUNK, INTERPRETER_CHUNK, tokens * heads
    if not INTERPRETED:
        multiple, smallest = LARGEST_BLOCK, SMALLEST_CHUNK
        programs = per_multiprocessor * _multiprocessors(device)
    wanted = triton.cdiv(tokens, max(1, programs // heads))
    chunk = max(smallest, triton.cdiv(wanted, multiple) * multiple)
    return Split(chunk, triton.cdiv(tokens, chunk))


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

    @property
    def function(self) -> Any:
        """The kernel without its tuner."""
        return self.kernel.fn if hasattr(self.kernel, 'configs') else self.kernel

    @property
    def name(self) -> str:
        """The kernel's name and the flags that are set."""
        flags = ('REDUCE', 'WRITE', 'WRITE_K', 'WRITE_V')
        active = [flag.lower() for flag in flags if self.arguments.get(flag)]
        return ' '.join([self.function.__name__, *active])


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
