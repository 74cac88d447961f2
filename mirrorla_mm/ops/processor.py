"""What the processor and torch's libraries for it can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def processor_words() -> frozenset[str]:
    """Maker and features of the processor, as Linux names them; nothing on other systems."""
    try:
        return frozenset(Path('/proc/cpuinfo').read_text().split())
    except OSError:
        return frozenset()


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, switched on, and computes in this dtype."""
    onednn = torch.backends.mkldnn
    there = bool(onednn.is_available() and onednn.enabled)
    return there and dtype in (torch.float32, torch.bfloat16)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; elsewhere it is slower than float32."""
    known = {'avx512_bf16', 'amx_bf16', 'bf16'}  # x86 twice, and Arm
    return has_onednn(torch.bfloat16) and not known.isdisjoint(processor_words())


def has_slow_mkl() -> bool:
    """Whether MKL runs on half of this processor's width.

    It picks its kernels by the maker: those for AVX2 on AMD's processors with AVX-512.
    """
    return torch.backends.mkl.is_available() and {'AuthenticAMD', 'avx512f'} <= processor_words()
