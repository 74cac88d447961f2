"""Super-resolution: hosts of any attention, and what trains, tests and uses them."""

from . import datasets, hooks, losses, metrics, transforms  # noqa: F401  (registers them)
from .dctlsa import DCTLSA
from .restorer import Restorer
from .transfer import SlotTransfer

__all__ = ['DCTLSA', 'Restorer', 'SlotTransfer']
