"""Inference on images of any size: in tiles, and averaged over flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod

from torch import Tensor, nn

from ..engine.errors import UserError

OVERLAP = 32


def enlarge(
    network: nn.Module,
    x: Tensor,
    tile: int | None = None,
    overlap: int = OVERLAP,
    self_ensemble: bool = False,
) -> Tensor:
    """Run a super-resolution network on whole images or in tiles.

    Args:
        network (nn.Module): Has ``upscale`` and ``window_size``.
        x (Tensor): Shape (B, 3, h, w).
        tile (int, optional): Side of a tile in pixels of the input, a multiple of the window's.
            Defaults to whole images.
        overlap (int): Pixels that neighbouring tiles share. Defaults to 32.
        self_ensemble (bool): Mean over the 8 ways to flip and transpose an image, which costs 8
            times as much. Defaults to False.

    Returns:
        Tensor: Shape (B, 3, s * h, s * w).

    Raises:
        UserError: If tiles of this size and overlap do not cut an image.
    """
    run = network
    if tile is not None:
        check_tiles(tile, overlap, network.window_size)

        def run(image: Tensor) -> Tensor:
            return enlarge_tiles(network, image, tile, overlap)

    return mean_of_flips(run, x) if self_ensemble else run(x)


def number_of_passes(
    size: tuple[int, int],
    window: int,
    tile: int | None = None,
    overlap: int = OVERLAP,
    self_ensemble: bool = False,
) -> int:
    """How often :func:`enlarge` calls the network for an image of (h, w)."""
    sides = [] if tile is None else [len(list(tile_spans(n, tile, overlap, window))) for n in size]
    return prod(sides) * (8 if self_ensemble else 1)


def mean_of_flips(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean over the 8 ways to flip and transpose an image, each undone (Lim et al., EDSR)."""
    total = 0
    for flips, transpose in product(((), (2,), (3,), (2, 3)), (False, True)):
        y = x.flip(flips)
        y = network(y.mT).mT if transpose else network(y)
        total = total + y.flip(flips)
    return total / 8


def check_tiles(tile: int, overlap: int, window: int) -> None:
    """Make sure that tiles start where windows do.

    Raises:
        UserError: If they do not.
    """
    if tile % window or overlap % window or overlap < 0 or tile <= overlap:
        raise UserError(
            f'Tiles need to be larger than their overlap, and both multiples of the window of '
            f'{window} pixels, as tiles that start within a window see other windows; got tiles '
            f'of {tile} and an overlap of {overlap}.'
        )


def enlarge_tiles(network: nn.Module, x: Tensor, tile: int, overlap: int) -> Tensor:
    """Tile by tile; of what two tiles share each gives the half that is nearer to it.

    The network sees a tile on its own, so that near its border the result is not that of the
    whole image.
    """
    height, width = x.shape[-2:]
    scale = network.upscale
    out = x.new_empty(*x.shape[:2], scale * height, scale * width)
    spans = (list(tile_spans(n, tile, overlap, network.window_size)) for n in (height, width))
    for (rows, kept_rows), (columns, kept_columns) in product(*spans):
        y = network(x[..., rows, columns])
        kept = [
            slice(scale * (kept.start - seen.start), scale * (kept.stop - seen.start))
            for seen, kept in ((rows, kept_rows), (columns, kept_columns))
        ]
        place = [slice(scale * kept.start, scale * kept.stop) for kept in (kept_rows, kept_columns)]
        out[(..., *place)] = y[(..., *kept)]
    return out


def tile_spans(length: int, tile: int, overlap: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Cut one side of an image.

    Args:
        length (int): Of the side.
        tile (int): Of a tile, a multiple of ``window``. The last one may be longer by less than a
            window.
        overlap (int): Of neighbours, at least.
        window (int): Tiles start at multiples of it.

    Yields:
        tuple[slice, slice]: What a tile sees, and the part of it that it gives.
    """
    last = max(length - tile, 0) // window * window
    starts = [*range(0, last, tile - overlap), last]
    stops = [start + tile for start in starts[:-1]] + [length]
    cuts = [0, *((start + stop) // 2 for start, stop in zip(starts[1:], stops)), length]
    for start, stop, first, end in zip(starts, stops, cuts, cuts[1:]):
        yield slice(start, stop), slice(first, end)
