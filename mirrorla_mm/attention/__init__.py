"""Attention modules: one file a method, one interface, usable in every host."""

from .agent import AgentAttention
from .base import Attention
from .efficient import EfficientAttention
from .elu import ELUAttention
from .feature_map import FeatureMapAttention
from .flatten import FLattenAttention
from .hydra import HydraAttention
from .inline import InLineAttention
from .linear_angular import LinearAngularAttention
from .lsa import LSA
from .mirror import MirrorAttention
from .nalaformer import NaLaAttention
from .polaformer import PolaAttention
from .polaformerpp import PolaPPAttention
from .rala import RALA
from .reflection import Reflection
from .relu import ReLUAttention
from .softmax import SoftmaxAttention
from .still import STILLAttention

__all__ = [
    'LSA',
    'RALA',
    'AgentAttention',
    'Attention',
    'ELUAttention',
    'EfficientAttention',
    'FLattenAttention',
    'FeatureMapAttention',
    'HydraAttention',
    'InLineAttention',
    'LinearAngularAttention',
    'MirrorAttention',
    'NaLaAttention',
    'PolaAttention',
    'PolaPPAttention',
    'ReLUAttention',
    'Reflection',
    'STILLAttention',
    'SoftmaxAttention',
]
