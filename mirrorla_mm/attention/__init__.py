"""Attention modules: one file a method, one interface, usable in every host."""

from .base import Attention
from .feature_map import FeatureMapAttention
from .mirror import MirrorAttention
from .rala import RALA
from .reflection import Reflection
from .relu import ReLUAttention
from .softmax import SoftmaxAttention

__all__ = [
    'RALA',
    'Attention',
    'FeatureMapAttention',
    'MirrorAttention',
    'ReLUAttention',
    'Reflection',
    'SoftmaxAttention',
]
