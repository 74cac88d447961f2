"""The windows of a map of tokens, and how many salient tokens each has."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import symbolic


class Windows(NamedTuple):
    """Which tokens are exact for which queries on a map.

    ``hw_shape`` is always height and width of the map of queries in tokens, ``grid`` the windows
    along each axis.

    Attributes:
        side (int): Side of a window, in keys; maps are padded to whole windows.
        top_k (int): Salient tokens of each window, per head. All if there are no more.
        most (int, optional): Largest number of salient tokens of an image, per head: those whose
            self-attention has the largest odds, over those of an even attention. It bounds the cost
            per token. None for no bound.
        reduction (int): Queries per key along each axis, where keys were reduced.
    """

    side: int = 7
    top_k: int = 4
    most: int | None = 64
    reduction: int = 1

    def grid(self, hw_shape: tuple[int, int]) -> tuple[int, int]:
        """Count the windows along each axis; the last ones may be cut by the border."""
        side = self.side * self.reduction
        # Of positive numbers: ONNX rounds a negative quotient towards zero.
        height, width = ((n + side - 1) // side for n in hw_shape)
        return height, width

    def cut(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Cut a map of queries into windows.

        Args:
            x (Tensor): Shape (B, H, N, c).
            hw_shape (tuple[int, int]): Of the map.

        Returns:
            Tensor: Shape (B, H, W, n, c), zeros beyond the border.
        """
        return _cut(x, hw_shape, self.grid(hw_shape), self.side * self.reduction)

    def cut_keys(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Cut a map of keys into the windows of its queries.

        Args:
            x (Tensor): Shape (B, H, M, c).
            hw_shape (tuple[int, int]): Of the map of queries.

        Returns:
            Tensor: Shape (B, H, W, n, c), zeros beyond the border.
        """
        return _cut(x, self.reduced(hw_shape), self.grid(hw_shape), self.side)

    def join(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Undo :meth:`cut`: (B, H, W, n, c) to (B, H, N, c)."""
        grid, side = self.grid(hw_shape), self.side * self.reduction
        if symbolic():
            # A slice would tie the graph to sizes that are padded wherever this one is.
            rows, columns = (torch.arange(n, device=x.device) for n in hw_shape)
            window = rows[:, None] // side * grid[1] + columns // side
            place = window * side**2 + rows[:, None] % side * side + columns % side
            return x.flatten(2, 3).index_select(2, place.flatten())
        x = x.unflatten(2, grid).unflatten(4, (side, side)).transpose(3, 4)
        return x.flatten(4, 5).flatten(2, 3)[:, :, : hw_shape[0], : hw_shape[1]].flatten(2, 3)

    def reduced(self, hw_shape: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the map of keys in tokens."""
        return hw_shape[0] // self.reduction, hw_shape[1] // self.reduction

    def per_key(self, q: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Give each key a query, the mean of those in its place.

        Args:
            q (Tensor): Queries, shape (B, H, N, d).
            hw_shape (tuple[int, int]): Of their map.

        Returns:
            Tensor: Shape (B, H, M, d).
        """
        if self.reduction == 1:
            return q
        maps = q.flatten(0, 1).transpose(1, 2).unflatten(2, tuple(hw_shape))
        pooled = F.avg_pool2d(maps, self.reduction)
        return pooled.flatten(2).transpose(1, 2).unflatten(0, q.shape[:2])

    def candidates(self, grid: tuple[int, int]) -> tuple[int, int]:
        """How many tokens of a window, and of an image, are salient, per head.

        Args:
            grid (tuple[int, int]): From :meth:`grid`.

        Returns:
            tuple[int, int]: Largest numbers of both.
        """
        each = min(self.top_k, self.side**2)
        total = grid[0] * grid[1] * each
        if self.most is None or each == 0:
            return each, total
        # The number of windows is unknown to an exporter: places may stay empty there.
        return each, self.most if symbolic() else min(total, self.most)


def _cut(x: Tensor, shape: tuple[int, int], grid: tuple[int, int], side: int) -> Tensor:
    bottom, right = (n * side - length for n, length in zip(grid, shape))
    # Keys that a reduction left over at the border belong to no window.
    x = F.pad(x.unflatten(2, tuple(shape)), (0, 0, 0, right, 0, bottom))
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).transpose(3, 4)
    return x.flatten(4, 5).flatten(2, 3)
