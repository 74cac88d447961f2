# mypy: disable-error-code="no-untyped-def"
"""Plain linear attention fused in Triton, without mirrors, weights or rotation: a peer to time.

``o_t = q_t S / (q_t . m + 1e-6)`` with ``S = sum_t k_t^T v_t`` and ``m = sum_t k_t`` over all
tokens, of features q and k that are computed before: two passes forwards, two backwards. This is
how libraries of bidirectional linear attention write it; the kernels are ours. The backward pass is
that of docs/mirror_attention_backward.md with all weights 1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.fused.launching import split_tokens
from ..ops.fused.passes import empty_out, precision
from ..ops.fused.tiles import (
    dot,
    head_pointer,
    load_matrix,
    load_tile,
    load_vector,
    own_tokens,
    store_matrix,
    store_tile,
    store_vector,
)
from ..ops.fused.tuning import INTERPRETED

CHOICES = ((32, 4),) if INTERPRETED else ((32, 4), (64, 4), (64, 8), (128, 8))
tuned = triton.autotune(
    [triton.Config({'BLOCK_N': block}, num_warps=warps, num_stages=2) for block, warps in CHOICES],
    key=['HEAD_DIM', 'PRECISION'],
)


@tuned
@triton.jit(do_not_specialize=['tokens', 'heads'])
def gather_kernel(
    k, k_strides, v, v_strides, sums, tokens, heads, chunk,
    PRECISION: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A split's part of S and m; ``sums``: (B*H, splits, d + 1, d), the last row m."""
    head, start, stop = own_tokens(tokens, chunk)
    k = head_pointer(k, k_strides, head, heads, 1)
    v = head_pointer(v, v_strides, head, heads, 1)
    matrix = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for t0 in range(start, stop, BLOCK_N):
        key = load_tile(k, k_strides, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        value = load_tile(v, v_strides, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        matrix += dot(tl.trans(key), value, PRECISION)
        total += key
    split = head.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    sums += split * (HEAD_DIM * (HEAD_DIM + 1))
    store_matrix(sums, matrix, HEAD_DIM, BLOCK_D)
    store_vector(sums + HEAD_DIM * HEAD_DIM, tl.sum(total, 0), HEAD_DIM, BLOCK_D)


@triton.jit
def load_state(state, head, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """S (d, d) and m (1, d) of a head."""
    state += head.to(tl.int64) * (HEAD_DIM * (HEAD_DIM + 1))
    matrix = load_matrix(state, HEAD_DIM, BLOCK_D)
    return matrix, load_vector(state + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)


@tuned
@triton.jit(do_not_specialize=['tokens', 'heads'])
def read_kernel(
    q, q_strides, state, out, out_strides, tokens, heads, chunk,
    PRECISION: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``o_t = q_t S / (q_t . m + 1e-6)``."""
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads, 1)
    out = head_pointer(out, out_strides, head, heads, 1)
    matrix, total = load_state(state, head, HEAD_DIM, BLOCK_D)
    for t0 in range(start, stop, BLOCK_N):
        query = load_tile(q, q_strides, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        scale = 1 / (tl.sum(query * total, 1) + 1e-6)[:, None]
        value = dot(query, matrix, PRECISION) * scale
        store_tile(out, out_strides, value, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)


@tuned
@triton.jit(do_not_specialize=['tokens', 'heads'])
def query_gradient_kernel(
    q, q_strides, g, g_strides, state, q_grad, q_grad_strides, sums, tokens, heads, chunk,
    PRECISION: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """With ``z = 1 / (q . m + 1e-6)``, ``u = S g``, ``dy = -z^2 q . u``: ``dq = z u + dy m``.

    A split's part of ``dS = sum q^T (z g)`` and ``dm = sum dy q`` goes to ``sums``.
    """
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads, 1)
    g = head_pointer(g, g_strides, head, heads, 1)
    q_grad = head_pointer(q_grad, q_grad_strides, head, heads, 1)
    matrix, total = load_state(state, head, HEAD_DIM, BLOCK_D)
    matrix_grad = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    total_grad = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for t0 in range(start, stop, BLOCK_N):
        query = load_tile(q, q_strides, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        grad = load_tile(g, g_strides, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        z = 1 / (tl.sum(query * total, 1) + 1e-6)[:, None]
        u = dot(grad, tl.trans(matrix), PRECISION)
        y_grad = -z * z * tl.sum(query * u, 1)[:, None]
        value = z * u + y_grad * total
        store_tile(q_grad, q_grad_strides, value, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        matrix_grad += dot(tl.trans(query * z), grad, PRECISION)
        total_grad += y_grad * query
    split = head.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    sums += split * (HEAD_DIM * (HEAD_DIM + 1))
    store_matrix(sums, matrix_grad, HEAD_DIM, BLOCK_D)
    store_vector(sums + HEAD_DIM * HEAD_DIM, tl.sum(total_grad, 0), HEAD_DIM, BLOCK_D)


@tuned
@triton.jit(do_not_specialize=['tokens', 'heads'])
def key_gradient_kernel(
    k, k_strides, v, v_strides, state_grad, k_grad, k_grad_strides, v_grad, v_grad_strides,
    tokens, heads, chunk,
    PRECISION: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dk = dS v + dm`` and ``dv = k dS``."""
    head, start, stop = own_tokens(tokens, chunk)
    k = head_pointer(k, k_strides, head, heads, 1)
    v = head_pointer(v, v_strides, head, heads, 1)
    k_grad = head_pointer(k_grad, k_grad_strides, head, heads, 1)
    v_grad = head_pointer(v_grad, v_grad_strides, head, heads, 1)
    matrix, total = load_state(state_grad, head, HEAD_DIM, BLOCK_D)
    for t0 in range(start, stop, BLOCK_N):
        key = load_tile(k, k_strides, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        value = load_tile(v, v_strides, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        grad = dot(value, tl.trans(matrix), PRECISION) + total
        store_tile(k_grad, k_grad_strides, grad, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)
        grad = dot(key, matrix, PRECISION)
        store_tile(v_grad, v_grad_strides, grad, t0, stop, 1, HEAD_DIM, BLOCK_N, BLOCK_D)


def _launch(kernel: Any, per_multiprocessor: int, sums: bool = False, **tensors: Tensor) -> Any:
    """Launch over the heads and splits of the first tensor; with ``sums`` those over all tokens."""
    first = next(iter(tensors.values()))
    batch, heads, tokens, channels = first.shape
    rows = batch * heads
    block = max(16, triton.next_power_of_2(channels))
    chunk, splits = split_tokens(tokens, rows, first.device, per_multiprocessor, block)
    arguments: dict[str, Any] = dict(tensors)
    arguments |= {
        f'{name}_strides': x.stride() for name, x in tensors.items() if not name.startswith('state')
    }
    found = first.new_empty(rows, splits, channels + 1, channels, dtype=torch.float32)
    if sums:
        arguments['sums'] = found
    kernel[rows, splits](
        **arguments, tokens=tokens, heads=heads, chunk=chunk,
        PRECISION=precision(first), HEAD_DIM=channels, BLOCK_D=block,
    )  # fmt: skip
    return found.sum(1) if sums else None


class _PlainLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        state, out = _launch(gather_kernel, 2, True, k=k, v=v), empty_out(v)
        _launch(read_kernel, 4, q=q, state=state, out=out)
        ctx.save_for_backward(q, k, v, state)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, state = ctx.saved_tensors
        q_grad, k_grad, v_grad = map(empty_out, (q, k, v))
        tensors = dict(q=q, g=grad, state=state, q_grad=q_grad)
        state_grad = _launch(query_gradient_kernel, 2, True, **tensors)
        tensors = dict(k=k, v=v, state_grad=state_grad, k_grad=k_grad, v_grad=v_grad)
        _launch(key_gradient_kernel, 4, **tensors)
        return q_grad, k_grad, v_grad


def plain_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain linear attention of features q, k >= 0 and values v, (B, H, N, d) each, on a GPU.

    float32, float16 or bfloat16, one for all; the output has it too. No special case is caught:
    it is here to be timed.
    """
    return _PlainLinearAttention.apply(q, k, v)
