"""Which tokens a chosen query attends to, without the N x N matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .capture import Captured


def attention_rows(captured: Captured, queries: list[int]) -> Tensor:
    """Rows of the attention matrix, averaged over heads and channels.

    Attention is linear in the values, ``o_t = sum_i A_ti v_i``, so a row is the gradient of its
    output with respect to them: one backward pass a query, in the method's own time and memory, for
    every method and with all it does to q and k on the way.

    Args:
        captured (Captured): What the module was given for one image.
        queries (list[int]): Token indices.

    Returns:
        Tensor: Shape (len(queries), M), M tokens of keys. Rows may have negative entries where RoPE
        turns the numerator alone.
    """
    with torch.no_grad():
        q, k, v = captured.heads()
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        out = captured.module.attend(q, k, v, captured.hw_shape)
    rows = []
    for number, query in enumerate(queries, 1):
        (grad,) = torch.autograd.grad(out[:, :, query].sum(), v, retain_graph=number < len(queries))
        rows.append(grad[0].mean((0, -1)))
    return torch.stack(rows)


def token_at(point: tuple[float, float], hw_shape: tuple[int, int]) -> int:
    """Index of the token at a relative position (x, y), each from 0 to 1 from the top left."""
    height, width = hw_shape
    column = min(int(point[0] * width), width - 1)
    row = min(int(point[1] * height), height - 1)
    return row * width + column
