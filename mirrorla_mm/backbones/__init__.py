"""Hosts: backbones that take any attention with the interface of :mod:`mirrorla_mm.attention`."""

from importlib.util import find_spec

from ..registry import register_lazily
from .mirrorla import MirrorLA
from .nalaformer import NaLaFormer
from .ravlt import RAVLT

# The hosts on top of stock classes are there where the stock is.
_stock = {}
if find_spec('mmdet') or find_spec('mmseg'):
    _stock['LinearSwin'] = '.swin'
if find_spec('mmdet'):
    _stock['LinearPVT'] = '.pvt'
__getattr__ = register_lazily(__name__, **_stock)

__all__ = ['RAVLT', 'MirrorLA', 'NaLaFormer', *_stock]
