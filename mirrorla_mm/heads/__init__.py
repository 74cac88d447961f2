"""Heads of the paper's tables that OpenMMLab does not have."""

from importlib.util import find_spec

from ..registry import register_lazily

_upstream = {'EfficientViTHead': '.efficientvit_head'} if find_spec('mmseg') else {}
__getattr__ = register_lazily(__name__, **_upstream)

__all__ = [*_upstream]
