"""Compile recorded launches for a GPU that need not be there, and read what they would use."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mirrorla_mm.ops.fused.launching import Launch

# Bytes that one block may have, from the tuning guides of CUDA's documentation.
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
_POINTERS = {
    torch.float32: '*fp32',
    torch.float16: '*fp16',
    torch.bfloat16: '*bf16',
    torch.int32: '*i32',
}


class Resources(NamedTuple):
    """Resources that one compiled kernel uses.

    Attributes:
        kernel (str): Its name, with the flags that are set.
        registers (int): Per thread; 255 is all there are.
        stack (int): Bytes per thread in local memory: spilled registers, and in the two small
            kernels with sines the tables of their argument reduction.
        shared (int): Bytes per block.
        loads (int): Global load instructions, asynchronous copies included.
        stores (int): Global store instructions.
        loop (int): Instructions of the longest loop, for kernels over the tokens those of a tile.
    """

    kernel: str
    registers: int
    stack: int
    shared: int
    loads: int
    stores: int
    loop: int


def compile_launch(launch: Launch, config: triton.Config, capability: int) -> Any:
    """Compile a launch with one configuration for ``capability``, say 90 for sm_90."""
    options = {'num_warps': config.num_warps, 'num_stages': config.num_stages}
    target = GPUTarget('cuda', capability, 32)
    source = _source(launch.function, {**launch.arguments, **config.kwargs})
    return triton.compile(source, target=target, options=options)


def resources(launch: Launch, config: triton.Config, capability: int) -> Resources:
    """Resources of a launch, compiled by :func:`compile_launch`."""
    compiled = compile_launch(launch, config, capability)
    usage, assembly = _disassemble(compiled.asm['cubin'])
    return Resources(
        launch.name,
        registers=int(re.findall(r'REG:(\d+)', usage)[0]),
        stack=int(re.findall(r'STACK:(\d+)', usage)[0]),
        shared=compiled.metadata.shared,
        loads=len(re.findall(r'\b(?:LDG|LDGSTS|UTMALDG)\b', assembly)),
        stores=len(re.findall(r'\b(?:STG|UTMASTG)\b', assembly)),
        loop=_longest_loop(assembly),
    )


def _longest_loop(assembly: str) -> int:
    """Instructions between a branch backwards and its target."""
    code = re.findall(r'/\*([0-9a-f]{4,})\*/\s+(.*?);', assembly)
    places = {int(address, 16): index for index, (address, _) in enumerate(code)}
    longest = 0
    for index, (_, instruction) in enumerate(code):
        target = re.search(r'\bBRA\b.*?0x([0-9a-f]+)', instruction)
        if target:
            longest = max(longest, index + 1 - places.get(int(target[1], 16), index + 1))
    return longest


def _source(function: triton.JITFunction, arguments: dict[str, Any]) -> ASTSource:
    """Signature as the launcher would specialise it: on ones, on multiples of 16, on alignment."""
    signature: dict[str, object] = {}
    constants, attributes = {}, {}

    def type_of(value: Any, path: tuple[int, ...], specialise: bool) -> str:
        if isinstance(value, Tensor):
            attributes[path] = [['tt.divisibility', 16]]
            return _POINTERS[value.dtype]
        if isinstance(value, float):
            return 'fp32'
        if specialise and value == 1:
            constants[path] = value
            return 'constexpr'
        if specialise and value % 16 == 0:
            attributes[path] = [['tt.divisibility', 16]]
        return 'i32' if -(2**31) <= value < 2**31 else 'i64'

    for index, parameter in enumerate(function.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            constants[index,] = value
            signature[parameter.name] = 'constexpr'
        elif isinstance(value, tuple):
            types = (type_of(x, (index, i), True) for i, x in enumerate(value))
            signature[parameter.name] = tuple(types)
        else:
            specialise = not parameter.do_not_specialize
            signature[parameter.name] = type_of(value, (index,), specialise)
    return ASTSource(function, signature, constants, attributes)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'kernel.cubin')
        path.write_bytes(cubin)
        usage, assembly = (
            subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
            for flag in ('-res-usage', '-sass')
        )
    return usage, assembly
