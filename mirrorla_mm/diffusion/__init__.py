"""Diffusion transformers: a host of any attention, two processes, and what trains and uses them."""

from . import datasets, shapes  # noqa: F401  (registers them)
from .ddpm import DDPM
from .dit import DiT
from .interpolant import Interpolant
from .model import DiffusionModel

__all__ = ['DDPM', 'DiT', 'DiffusionModel', 'Interpolant']
