"""Images that EXIF turns."""

from pathlib import Path

from PIL import Image

ORIENTATION = 0x0112


def turned(path: Path, value: int, size: tuple[int, int] = (60, 40)) -> str:
    """An image that is stored as ``value`` of its EXIF orientation says."""
    image = Image.new('RGB', size, 'red')
    exif = image.getexif()
    exif[ORIENTATION] = value
    image.save(path, exif=exif)
    return str(path)
