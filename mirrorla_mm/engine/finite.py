"""Numbers that must not become an image."""

from __future__ import annotations

from torch import Tensor

from .errors import UserError

__all__ = ['require_finite']


def require_finite(values: Tensor, what: str) -> None:
    """Refuse what rounding to 8 bits would hide: NaN becomes black, and infinity white.

    Raises:
        UserError: If not all are finite numbers, naming ``what``.
    """
    if not values.isfinite().all():
        raise UserError(
            f'{what} holds NaN or infinity: take an earlier checkpoint, or float32 where numbers '
            'of fewer bits overflow.'
        )
