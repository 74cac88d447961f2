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
        kind = torch.zeros(1, device=name).device.type
    # torch asserts that it was compiled for the device, and imports what others provide for it.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().partition('\n')[0].partition('. ')[0].rstrip('.')
        raise UserError(f"The device '{name}' cannot be used: {reason}.") from error
    if kind == 'meta':
        raise UserError(f"The device '{name}' cannot be used: its tensors have no values.")
    return name
