"""Use a trained model: :class:`Inferencer` for an image, :func:`predict` for files."""

from .inference import Inferencer, Prediction
from .predict import predict

__all__ = ['Inferencer', 'Prediction', 'predict']
