"""Heads that the paper's tables need and mmsegmentation does not have."""

from .efficientvit_head import EfficientViTHead

__all__ = ['EfficientViTHead']
