"""What the paper's tables need behind a backbone and OpenMMLab does not have."""

from importlib.util import find_spec

from .classification_neck import ProjectionNeck

__all__ = ['ProjectionNeck']

if find_spec('mmseg'):
    from .efficientvit_head import EfficientViTHead

    __all__ += ['EfficientViTHead']
