"""Hosts: backbones that take any attention with the interface of :mod:`mirrorla_mm.attention`."""

from importlib.util import find_spec

from .mirrorla import MirrorLA
from .nalaformer import NaLaFormer
from .ravlt import RAVLT

__all__ = ['RAVLT', 'MirrorLA', 'NaLaFormer']

# The hosts on top of stock classes are there where the stock is.
if find_spec('mmdet') or find_spec('mmseg'):
    from .swin import LinearSwin

    __all__ += [LinearSwin.__name__]
if find_spec('mmdet'):
    from .pvt import LinearPVT

    __all__ += [LinearPVT.__name__]
