"""Bicubic resizing that equals MATLAB's ``imresize``, which the benchmarks are made with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrink an image as MATLAB's ``imresize(image, 1 / scale)`` does, to the last bit.

    Rows and columns beyond the last multiple of ``scale`` are left out first.

    Args:
        image (np.ndarray): Shape (H, W, C), uint8.
        scale (int): Integer factor.

    Returns:
        np.ndarray: Shape (H // scale, W // scale, C), uint8.
    """
    height, width = (n // scale * scale for n in image.shape[:2])
    return _resize(image[:height, :width], (height // scale, width // scale), 4 * scale)


def upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge an image as MATLAB's ``imresize(image, scale)`` does: what a model is held against.

    Args:
        image (np.ndarray): Shape (h, w, C), uint8.
        scale (int): Integer factor.

    Returns:
        np.ndarray: Shape (scale * h, scale * w, C), uint8.
    """
    return _resize(image, tuple(n * scale for n in image.shape[:2]), 4)


def _resize(image: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    """One axis after the other, height first; MATLAB rounds integers in between."""
    for axis, length in enumerate(size):
        image = _resize_axis(image, axis, length, border)
    return image


def _resize_axis(image: np.ndarray, axis: int, length: int, border: int) -> np.ndarray:
    """Bicubic interpolation of one axis of (H, W, C), mirrored beyond its ends.

    Args:
        image (np.ndarray): Shape (H, W, C), uint8.
        axis (int): 0 or 1.
        length (int): New length, a multiple or a divisor of the old.
        border (int): Pixels to add at both ends, a multiple of the factor where it shrinks.

    Returns:
        np.ndarray: uint8.
    """
    old = image.shape[axis]
    pads = [(0, 0)] * image.ndim
    pads[axis] = (border, border)
    padded = torch.from_numpy(np.pad(image, pads, mode='symmetric')).double().permute(2, 0, 1)
    size = list(padded.shape[1:])
    size[axis] = size[axis] * length // old
    # torch's antialiased kernel is MATLAB's, a = -1/2; the other one has a = -3/4.
    resized = F.interpolate(padded[None], size=size, mode='bicubic', antialias=True)[0]
    resized = resized.narrow(axis + 1, border * length // old, length)
    return (resized + 0.5).floor().clamp(0, 255).byte().permute(1, 2, 0).numpy()
