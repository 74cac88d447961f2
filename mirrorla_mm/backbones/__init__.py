"""Hosts: backbones that take any attention with the interface of :mod:`mirrorla_mm.attention`."""

from .mirrorla import MirrorLA
from .ravlt import RAVLT

__all__ = ['RAVLT', 'MirrorLA']
