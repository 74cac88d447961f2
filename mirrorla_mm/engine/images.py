"""Image files that cannot be trusted, each described in half a sentence.

The half sentences follow the name of the file: "a.jpg is cut short: ...".
"""

from __future__ import annotations

import os
import re
import warnings
from typing import BinaryIO

import mmcv
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .data import DataError

__all__ = [
    'IMAGES',
    'cut_short',
    'decoding_problem',
    'open_image',
    'opening_problem',
    'orientation',
    'read_image',
]

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')  # suffixes, in lower case

# What Pillow may take a file for, whatever its name says. Not EPS, which would run Ghostscript, nor
# formats that hold a file of any other one. Some need a newer Pillow, or a plugin of its users.
FORMATS = (
    *('JPEG', 'PNG', 'BMP', 'DIB', 'GIF', 'TIFF', 'WEBP', 'PPM'),
    *('JPEG2000', 'AVIF', 'HEIF', 'TGA', 'PCX', 'SGI', 'QOI', 'ICO'),
)
POSTSCRIPT = (b'%!PS', b'\xc5\xd0\xd3\xc6')  # first bytes

# The last bytes of a whole file, by its first ones.
ENDINGS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND\xaeB\x60\x82'}


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as OpenMMLab's loaders do, turned as its EXIF orientation says.

    Returns:
        np.ndarray: BGR, shape (H, W, 3), uint8.

    Raises:
        DataError: If there is no such file, or it is empty, cut short, no image, or has more pixels
            than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    problem = opening_problem(path) or cut_short(path)
    image = None if problem else mmcv.imread(str(path))
    if image is None:
        raise DataError(f'{path} {problem or decoding_problem(path)}.')
    return image


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """Open a file with Pillow as one of ``FORMATS``; no program is run for it.

    Raises:
        PIL.UnidentifiedImageError: If it is of none of them.
    """
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _start(path: str | os.PathLike) -> bytes:
    with open(path, 'rb') as file:
        return file.read(4)


def opening_problem(path: str | os.PathLike) -> str | None:
    """Why a local file must not be decoded, by its size and header alone; None if it may."""
    if not os.path.exists(path):
        return 'does not exist'
    if os.path.isdir(path):
        return 'is a folder'
    if not os.access(path, os.R_OK):
        return 'cannot be opened: you have no permission to read it'
    if not os.path.getsize(path):
        return 'is empty (0 bytes)'
    if _start(path).startswith(POSTSCRIPT):
        return 'is no image, but a program in PostScript'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with open_image(path) as image:
                pixels = image.width * image.height
    except Image.DecompressionBombError as error:
        pixels = int(re.search(r'(\d+) pixels', str(error))[1])
    except (OSError, SyntaxError):
        return None  # Other decoders may know the format.
    except Exception as error:  # such as Pillow's limit for the text in a PNG file
        return f'cannot be opened ({error}): save it anew'
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or pixels <= limit:
        return None
    return (
        f'has {pixels / 1e6:.0f} million pixels, and no more than {limit / 1e6:.0f} are read: '
        'make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS'
    )


def cut_short(path: str | os.PathLike) -> str | None:
    """Why a local JPEG or PNG file ends too early; OpenCV would fill the rest with grey."""
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return None
    with open(path, 'rb') as file:
        ending = ENDINGS.get(file.read(2))
        if ending is None:
            return None
        file.seek(-min(len(ending), os.path.getsize(path)), 2)
        if file.read() == ending:
            return None
    # Some cameras append data of their own: then only decoding tells.
    try:
        with open_image(path) as image:
            image.load()
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError):
        return 'is cut short: the file ends before the image does'
    except Exception:
        return None  # What else is wrong with it, other decoders may not mind.
    return None


def decoding_problem(path: str | os.PathLike) -> str | None:
    """Why a local file cannot be decoded; None if it can."""
    problem = opening_problem(path)
    if problem:
        return problem
    try:
        with open_image(path) as image:
            image.load()
    except Exception:
        return 'is no readable image: it is damaged, cut short or of another format'
    return None


def orientation(path: str | os.PathLike) -> int:
    """The EXIF orientation of a local file: 1 if upright, 5 to 8 if turned by 90 degrees."""
    try:
        with open_image(path) as image:
            if image.format == 'PNG' and 'exif' not in image.info:
                return 1  # Looking further would decode the image.
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError):
        return 1
