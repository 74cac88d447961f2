"""Launches: tokens dealt out to programs, and kernels called again at little cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from ..backend import capturing
from .tuning import INTERPRETED

LARGEST_BLOCK = 128
INTERPRETER_CHUNK = 64
WAVES = 4  # at most so many times the programs that are wanted at once


def split_tokens(
    tokens: int,
    rows: int,
    device: torch.device,
    per_multiprocessor: int,
    overhead: int,
    smallest: int = LARGEST_BLOCK,
) -> tuple[int, int]:
    """Tokens of a program, and programs of a row, that finish soonest.

    Args:
        tokens (int): N.
        rows (int): Heads of all images, B*H.
        device (torch.device): Where they run.
        per_multiprocessor (int): How many programs are wanted on a multiprocessor at once.
        overhead (int): Work of a program beside its tokens, in tokens.
        smallest (int): The smallest chunk. Defaults to one tile of any size.

    Returns:
        tuple[int, int]: The chunk, a multiple of every ``BLOCK_N``, and the number of splits.
    """
    if INTERPRETED:
        return INTERPRETER_CHUNK, triton.cdiv(tokens, INTERPRETER_CHUNK)
    slots = per_multiprocessor * multiprocessors(device)

    def chunk_of(count: int) -> int:
        wanted = triton.cdiv(triton.cdiv(tokens, count), LARGEST_BLOCK) * LARGEST_BLOCK
        return max(smallest, wanted)

    def waves(count: int) -> int:
        return triton.cdiv(rows * count, slots)

    def time(count: int) -> int:
        return waves(count) * (chunk_of(count) + overhead)

    # Of the counts that take as many waves the last has the smallest chunk: no other can be sooner.
    most = triton.cdiv(WAVES * slots, rows)
    last_ones = (min(most, wave * slots // rows) for wave in range(waves(1), waves(most) + 1))
    chunk = chunk_of(min(last_ones, key=time))
    return chunk, triton.cdiv(tokens, chunk)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has; what is no GPU counts as a large one."""
    if device.type != 'cuda':
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _nothing(number):
    pass


def launch_nothing(device: torch.device) -> None:
    """Go all the way of a first launch, which builds the driver and a launcher in C."""
    with torch.cuda.device(device):
        _nothing[(1,)](1)


class Launch(NamedTuple):
    """A launch that :func:`record_launches` kept instead of running it."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]

    @property
    def function(self) -> Any:
        """The kernel without its tuner."""
        return self.kernel.fn

    @property
    def name(self) -> str:
        """The kernel's name and the flags that are set."""
        flags = ('REDUCE', 'WRITE', 'WRITE_K', 'WRITE_V')
        active = [flag.lower() for flag in flags if self.arguments.get(flag)]
        return ' '.join([self.function.__name__, *active])

    @property
    def configurations(self) -> list[triton.Config]:
        """Those that tuning tries."""
        return self.kernel.early_config_prune(self.kernel.configs, {}, **self.arguments)


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


_tuning = Lock()  # a tuner keeps what it is working on in itself, for all threads


class Step:
    """One kernel with its grid and constants, for tensors of the same kind in every call.

    The first call goes through triton's tuner and binder. It leaves the compiled kernel, which the
    next ones launch without either: they hash, bind and specialise some 30 arguments anew.

    Args:
        kernel: A tuned kernel.
        grid (tuple[int, int, int]): Programs.
        constants (dict): Its arguments but for tensors.

    Raises:
        RuntimeError: In the first call, if a CUDA graph is being captured and the kernel is not
            tuned for its arguments yet.
    """

    def __init__(self, kernel: Any, grid: tuple[int, int, int], constants: dict[str, Any]) -> None:
        self.kernel, self.grid, self.constants = kernel, grid, constants
        self._launch: Any = None
        self._arguments: list = []
        self._tensors: list[tuple[int, str]] = []

    def bind(self, tensors: dict[str, Tensor]) -> Launch:
        """The launch with its tensors; what is not there is None."""
        names = (name for name in self.kernel.fn.arg_names if name not in _TUNED)
        arguments = {
            name: self.constants[name] if name in self.constants else tensors.get(name)
            for name in names
        }
        return Launch(self.kernel, self.grid, arguments)

    def __call__(self, tensors: dict[str, Tensor], stream: int) -> None:
        if self._launch is None:
            with _tuning:
                return self._first(tensors)
        arguments = self._arguments.copy()
        for index, name in self._tensors:
            arguments[index] = tensors[name]
        self._launch(*arguments, stream=stream)

    def _first(self, tensors: dict[str, Tensor]) -> None:
        arguments = self.bind(tensors).arguments
        captured = any(capturing(x.device) for x in tensors.values())
        try:
            compiled = self.kernel[self.grid](**arguments)
        except RuntimeError as error:  # kernels that are tuned already may be captured at once
            if not captured:
                raise
            raise RuntimeError(
                'The kernels of the fused mirror attention are tuned for these inputs by the first '
                'call, which a CUDA graph cannot capture; call it once before capturing.'
            ) from error
        if compiled is None:  # the interpreter compiles nothing
            return
        arguments |= self.kernel.best_config.kwargs
        names = self.kernel.fn.arg_names
        self._tensors = [
            (index, name) for index, name in enumerate(names) if isinstance(arguments[name], Tensor)
        ]
        self._arguments = [
            None if isinstance(arguments[name], Tensor) else arguments[name] for name in names
        ]
        self._launch = compiled[self.grid]


_TUNED = ('BLOCK_N', 'STAGES')


def run(steps: list[Step], tensors: dict[str, Tensor], device: torch.device) -> None:
    """Launch them one after the other on the device's current stream."""
    if _record is not None:
        _record.extend(step.bind(tensors) for step in steps)
        return
    if device.type != 'cuda':
        stream = 0
        guard: Any = nullcontext()
    else:
        current = device.index == torch.cuda.current_device()
        guard = nullcontext() if current else torch.cuda.device(device)
        stream = driver.active.get_current_stream(device.index)
    with guard:
        for step in steps:
            step(tensors, stream)
