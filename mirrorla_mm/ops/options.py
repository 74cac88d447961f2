"""Options of the operator, apart from its tensors: one record that all backends take."""

from __future__ import annotations

import math
from typing import NamedTuple

FEATURE_MAPS = ('mirror', 'elu', 'relu')


class Options(NamedTuple):
    """Keyword arguments of :func:`~mirrorla_mm.ops.mirror_attention`, where they are explained."""

    feature_map: str = 'mirror'
    rank_augmented: bool = True
    variance_aware: bool = True
    lam: float = 1.0
    alpha_max: float = math.pi / 2
    hw_shape: tuple[int, int] | None = None

    @property
    def mirrors(self) -> bool:
        """Whether queries and keys are reflected."""
        return self.feature_map == 'mirror'

    @property
    def reflects_by_variance(self) -> bool:
        """Whether angles depend on the tokens."""
        return self.mirrors and self.variance_aware
