"""What the paper's tables need behind a backbone and OpenMMLab does not have."""

from importlib.util import find_spec

from ..registry import register_lazily
from .classification_neck import ProjectionNeck

_stock = {'EfficientViTHead': '.efficientvit_head'} if find_spec('mmseg') else {}
__getattr__ = register_lazily(__name__, **_stock)

__all__ = ['ProjectionNeck', *_stock]
