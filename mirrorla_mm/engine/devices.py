"""The device that a user names."""

from __future__ import annotations

import torch

from .errors import UserError

__all__ = ['usable_device']


def usable_device(name: str) -> str:
    """Make sure that a device is one and is here.

    Args:
        name (str): Such as ``'cuda:0'`` or ``'cpu'``.

    Returns:
        str: The name.

    Raises:
        UserError: If nothing can be computed on it.
    """
    try:
        torch.zeros(1, device=name)
    # torch asserts that it was compiled for the device.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip('.')
        raise UserError(f"The device '{name}' cannot be used: {reason}.") from error
    return name
