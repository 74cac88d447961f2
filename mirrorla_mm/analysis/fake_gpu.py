"""A GPU that is not there: triton tunes, compiles and launches for it, and nothing is computed.

The driver stands where triton's own would. Everything before the GPU runs as it does for users:
the tuner and its cache on disk, the binding and specialisation of arguments, the compiler. What is
launched is checked against what was compiled, and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from .ahead_of_time import SHARED_MEMORY

LARGEST_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)


class Launched(NamedTuple):
    """One launch that reached the driver."""

    kernel: str
    grid: tuple[int, int, int]
    shared: int


class FakeGPU(DriverBase):
    """Driver of a GPU of one compute capability.

    Args:
        capability (int): 90 for sm_90; one of ``SHARED_MEMORY``.

    Attributes:
        launched (list[Launched]): What has been launched, those of the tuner included.
        timed (int): Configurations that the tuner has timed.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.launched: list[Launched] = []
        self.timed = 0
        self.utils = self
        self.launcher_cls = self._launcher

    @classmethod
    def is_active(cls) -> bool:
        """Never by itself, see :func:`fake_gpu`."""
        return False

    def get_current_target(self) -> GPUTarget:
        """The target that kernels are compiled for."""
        return GPUTarget('cuda', self.capability, 32)

    def get_current_device(self) -> int:
        """A number of its own for every capability: triton keeps what it compiled by it."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are."""
        return torch.device('cpu')

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Unused: no launcher is built."""
        raise NotImplementedError

    def get_device_properties(self, device: int) -> dict[str, int]:
        """The limits by which triton refuses kernels."""
        return {'max_shared_mem': SHARED_MEMORY[self.capability], 'multiprocessor_count': 132}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        """Module, function, registers, spills and threads per block."""
        assert binary[:4] == b'\x7fELF', f'{name} is no machine code'
        return name, name, 0, 0, 1024

    def get_benchmarker(self) -> Callable:
        """Runs a configuration once, and finds all of them equally fast."""

        def benchmark(call: Callable[[], object], quantiles: tuple[float, ...]) -> list[float]:
            call()
            driver.active.timed += 1  # tuners keep the benchmark of the first driver they meet
            return [1.0 for _ in quantiles]

        return benchmark

    def _launcher(self, source: Any, metadata: Any) -> Callable:
        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            for size, largest in zip((x, y, z), LARGEST_GRID):
                assert 0 < size <= largest, f'{metadata.name}: grid {(x, y, z)}'
            # Before the kernel's own: stream, function, metadata (two of them) and two hooks.
            check_arguments(source, rest[6:])
            # Kernels keep the launcher of the first driver they meet.
            driver.active.launched.append(Launched(metadata.name, (x, y, z), metadata.shared))

        return launch


def check_arguments(source: Any, arguments: tuple) -> None:
    """Compare a launch's arguments with what its kernel was compiled for.

    Raises:
        AssertionError: If a constant differs, an address or number is less aligned, or a number
            does not fit.
    """
    name = source.fn.__name__
    assert len(arguments) == len(source.signature), name

    def at(path: tuple[int, ...]) -> Any:
        value: Any = arguments
        for index in path:
            value = value[index]
        return value

    for path, constant in source.constants.items():
        assert at(path) == constant, f'{name}: {path} is {at(path)}, compiled for {constant}'
    for path, attributes in source.attrs.items():
        value = at(path)
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        for attribute, divisor in attributes:
            assert attribute != 'tt.divisibility' or number % divisor == 0, f'{name}: {path}'
    for (parameter, type_), value in zip(source.signature.items(), arguments):
        assert (type_[:1] == '*') == isinstance(value, torch.Tensor), f'{name}: {parameter}'
        if type_ == 'i32':
            assert -(2**31) <= value < 2**31, f'{name}: {parameter}'


@contextmanager
def fake_gpu(capability: int = 90) -> Iterator[FakeGPU]:
    """Let triton run on a :class:`FakeGPU`, with tensors on the CPU.

    What it compiled stays with the kernels, so a process should not turn to a real GPU later.
    """
    found, driver._active = driver._active, FakeGPU(capability)
    try:
        yield driver._active
    finally:
        driver._active = found
