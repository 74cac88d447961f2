"""Figures that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['save_figure']


def save_figure(figure: Figure, path: str | Path, dpi: int) -> None:
    """Write a figure in the format that the name of its file says, or as PNG.

    Args:
        figure (Figure): What to write.
        path (str | Path): The file; missing folders are made.
        dpi (int): Pixels to an inch.

    Raises:
        OSError: If it cannot be written; an earlier file is then untouched.
        ValueError: If the name ends as no format does that matplotlib writes; likewise.
    """
    with whole_file(path) as partial:
        # Named, as the partial file's name says nothing of it.
        figure.savefig(partial, dpi=dpi, format=Path(path).suffix[1:] or 'png')
