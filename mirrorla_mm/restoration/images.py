"""Image files of any kind, as the colours that a network sees and what has to be put back."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor

from ..engine.atomic import whole_file
from ..engine.data import DataError
from ..engine.images import (
    cut_short,
    decoding_problem,
    open_image,
    opening_problem,
    orientation,
)

DEPTHS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class Image:
    """An image as it lay in its file.

    Attributes:
        colours (Tensor): RGB in [0, 1], shape (3, H, W), float32.
        alpha (Tensor, optional): Opacity in [0, 1], shape (1, H, W).
        grey (bool): Whether the three colours are one.
        depth (int): Largest value in the file, 255 or 65535.
    """

    colours: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    depth: int = 255

    def enlarged(self, colours: Tensor) -> Image:
        """The same kind of image of larger colours (3, s * H, s * W); opacity is interpolated."""
        alpha = self.alpha
        if alpha is not None:
            size = colours.shape[-2:]
            alpha = F.interpolate(alpha[None], size=size, mode='bicubic', antialias=True)[0]
        return Image(colours.cpu(), alpha, self.grey, self.depth)

    def array(self) -> np.ndarray:
        """Grey, BGR or BGRA of 8 or 16 bits, shape (H, W) or (H, W, C)."""
        planes = [self.colours.mean(0)] if self.grey else [*self.colours.unbind()[::-1]]
        if self.alpha is not None:
            planes = [*(planes * 3 if self.grey else planes), self.alpha[0]]
        dtype = np.uint8 if self.depth == 255 else np.uint16
        array = np.empty((*self.colours.shape[1:], len(planes)), dtype)
        # One plane after the other: a large image in float64 would be what takes most memory.
        for number, plane in enumerate(planes):
            values = plane.to(torch.float64, copy=True).mul_(self.depth).round_()
            array[..., number] = values.clamp_(0, self.depth).numpy()
        return array if len(planes) > 1 else array[..., 0]


def read_image(path: str | os.PathLike) -> Image:
    """Read a grey, colour or transparent image of 8 or 16 bits, turned as its EXIF tells.

    Raises:
        DataError: If it cannot be read, or is of another kind.
    """
    problem = opening_problem(path) or cut_short(path)
    pixels = None if problem else _decoded(path)
    if pixels is None:
        raise DataError(f'{path} {problem or decoding_problem(path) or "cannot be read"}.')
    if pixels.dtype not in DEPTHS:
        raise DataError(f'{path} holds {pixels.dtype} numbers; images of 8 or 16 bits are read.')
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] not in (1, 3, 4):
        raise DataError(f'{path} has {pixels.shape[2]} channels; 1, 3 or 4 are read.')
    depth = DEPTHS[pixels.dtype]
    grey = bool((pixels[..., :3] == pixels[..., :1]).all()) and pixels.shape[2] != 3
    values = torch.from_numpy(pixels.astype(np.float32) / depth).permute(2, 0, 1)
    colours = values[:3].flip(0) if len(values) > 1 else values.expand(3, -1, -1)
    alpha = values[3:] if len(values) == 4 else None
    return Image(colours.contiguous(), alpha, grey, depth)


def _decoded(path: str | os.PathLike) -> np.ndarray | None:
    """Grey, BGR or, where there is opacity, BGRA, upright; None of no image."""
    content = Path(path).read_bytes()  # not by imread, which some names crash
    encoded = np.frombuffer(content, np.uint8)
    pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return None
    try:
        # Not by its name: Pillow maps some turned TIFF files into memory with sides exchanged.
        with open_image(io.BytesIO(content)) as stored:
            transparent = stored.has_transparency_data
            if transparent and pixels.dtype == np.uint8:
                # OpenCV mixes the colours of some files with black, and forgets that of others.
                stored.load()  # which turns a TIFF
                upright = ImageOps.exif_transpose(stored)
                return cv2.cvtColor(np.array(upright.convert('RGBA')), cv2.COLOR_RGBA2BGRA)
    except (OSError, SyntaxError, ValueError):  # of a format that OpenCV alone knows
        transparent = pixels.ndim == 3 and pixels.shape[2] == 4
    if transparent and pixels.ndim == 3 and pixels.shape[2] == 4:
        return _upright(pixels, orientation(path))
    # What is unchanged is not turned either.
    return cv2.imdecode(encoded, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Undo an EXIF orientation of 1 to 8."""
    if turn > 4:
        pixels = pixels.transpose(1, 0, 2)
    across, down = turn in (2, 3, 6, 7), turn in (3, 4, 7, 8)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def write_png(image: np.ndarray, path: Path) -> None:
    """Write a PNG file, whole or not at all.

    Args:
        image (np.ndarray): Grey, BGR or BGRA of 8 or 16 bits.
        path (Path): Its folder is made where missing.

    Raises:
        OSError: If it cannot be written.
    """
    with whole_file(path, sync=False) as partial:
        partial.write_bytes(cv2.imencode('.png', image)[1].tobytes())
