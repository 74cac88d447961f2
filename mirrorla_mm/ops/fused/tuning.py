"""Configurations of the kernels: which are tried, which are left out, and by what key."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import triton
from triton import knobs

INTERPRETED = knobs.runtime.interpret

# Numbers that are no reason to compile a kernel again.
SIZES = ('first_counter', 'group', 'tokens', 'heads', 'regime', 'positions', 'width')

# (BLOCK_N, warps, stages). Few: every new key times them all once, then the disk remembers.
CONFIGS = {
    'light': ((32, 4, 1), (64, 4, 1), (64, 8, 1)),
    'product': ((32, 4, 2), (64, 4, 2), (32, 8, 2), (64, 8, 2), (128, 8, 2)),
    'backward': ((16, 4, 2), (32, 4, 2), (16, 8, 2), (32, 8, 2), (64, 8, 2)),
}
INTERPRETER_CONFIG = (32, 4, 1)

# Where none of these keeps its operands in registers (float32 with more than 64 channels).
SMALLEST = {'light': (32, 8, 1), 'product': (16, 8, 1), 'backward': (16, 8, 1)}

# Words a thread may hold of a tile and of a (d, d) matrix, both operands of products. Beyond these
# registers spill on one architecture or another (tools/analysis_tools/kernel_report.py).
LARGEST_TILE = {'light': 64, 'product': 32, 'backward': 16}
LARGEST_MATRIX = {'light': math.inf, 'product': 128, 'backward': 64}

LAYOUTS = ('channels', 'tokens', 'mixed')
_KEY = (
    'regime',
    'HEAD_DIM',
    'VECTOR',
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


def autotune(kind: str) -> Callable:
    """Choose among ``CONFIGS[kind]``; triton adds the dtypes of all tensors to the key.

    The key is written as JSON, so it holds numbers, strings and flags alone.
    """

    def decorate(kernel):
        choices = (INTERPRETER_CONFIG,) if INTERPRETED else CONFIGS[kind]
        names = kernel.arg_names
        options = {
            'key': [name for name in _KEY if name in names],
            'prune_configs_by': {'early_config_prune': partial(_without_spills, kind)},
            # Timing a kernel runs it many times within one call.
            'reset_to_zero': ['counters'] if 'counters' in names else None,
        }
        if 'cache_results' in inspect.signature(triton.autotune).parameters:
            options['cache_results'] = True
        return triton.autotune([_config(kind, x) for x in choices], **options)(kernel)

    return decorate


def _config(kind: str, choice: tuple[int, int, int]) -> triton.Config:
    block, warps, stages = choice
    constants = {'BLOCK_N': block} | ({'STAGES': stages} if kind == 'backward' else {})
    return triton.Config(constants, num_warps=warps, num_stages=stages)


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

    return [config for config in configs if load(config) <= 1] or [_config(kind, SMALLEST[kind])]


def layout(*strides: tuple[int, ...]) -> str:
    """Which neighbours in memory are read together: channels, tokens, or not the same in all."""
    for name, dimension in (('channels', 3), ('tokens', 2)):
        if all(x[dimension] == 1 for x in strides):
            return name
    return 'mixed'


def regime(chunk: int, layout: str, aligned: bool, full: bool) -> int:
    """One number for the tuner's key: what no kernel reads, but decides which choice is fastest.

    The layout, whether all tensors begin at a multiple of 16 bytes, whether every multiprocessor
    has a program, and whether a program walks few tokens (up to 512), some, or many (beyond 2048).
    It is no constant of the kernels, so a new length times the choices again but compiles nothing.
    """
    length = (chunk > 512) + (chunk > 2048)
    return ((LAYOUTS.index(layout) * 2 + aligned) * 2 + full) * 3 + length
