"""Hosts: backbones that take any attention with the interface of :mod:`mirrorla_mm.attention`."""

from importlib.util import find_spec

from ..registry import register_lazily
from .mirrorla import MirrorLA
from .nalaformer import NaLaFormer
from .ravlt import RAVLT

# The hosts on top of upstream classes are there where upstream is installed.
_upstream = {}
if find_spec('mmdet') or find_spec('mmseg'):
    _upstream['LinearSwin'] = '.swin'
if find_spec('mmdet'):
    _upstream['LinearPVT'] = '.pvt'
__getattr__ = register_lazily(__name__, **_upstream)

__all__ = ['RAVLT', 'MirrorLA', 'NaLaFormer', *_upstream]
