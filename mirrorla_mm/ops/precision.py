"""Precision rules shared by the reference operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Promote half precision to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to ``dtype``; what float16 cannot hold becomes its largest finite number, not infinity.

    Where the support of a query hardly meets the keys', the normaliser is tiny while RoPE keeps the
    numerator away from 0, and the quotient leaves float16's range.
    """
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        x = x.clamp(-largest, largest)
    return x.to(dtype)


Result = TypeVar('Result')


def without_autocast(function: Callable[..., Result]) -> Callable[..., Result]:
    """Run ``function`` outside autocast, on the device of its first argument.

    Variances, angles and normalisers overflow or divide zero by zero in float16, so the operators
    choose their own precision instead of inheriting the run's.
    """

    @wraps(function)
    def run(x: Tensor, *args, **kwargs) -> Result:
        if x.is_meta:  # Shapes alone, and no autocast to leave.
            return function(x, *args, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return run
