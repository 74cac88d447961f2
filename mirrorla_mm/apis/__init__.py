"""Using a trained model."""

from .inference import build_inferencer, predict

__all__ = ['build_inferencer', 'predict']
