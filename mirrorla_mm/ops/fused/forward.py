# mypy: disable-error-code="no-untyped-def"
"""Forward kernels, on a grid of (B*H heads, splits of the tokens).

A split is ``chunk`` tokens, walked ``BLOCK_N`` at a time. What it sums goes to a row of its own,
and the last programs to finish add the rows in a fixed order (:mod:`.merging`): no atomics on
values, the same bits every time that the tuner's choice is the same.
"""

import triton
import triton.language as tl

from .merging import merge_moments, merge_softmax, merge_sums, own_row
from .tiles import (
    dot,
    head_pointer,
    interleave,
    load_features,
    load_matrix,
    load_mirror,
    load_rotation,
    load_tile,
    load_turned,
    load_vector,
    mirror_row,
    own_tokens,
    pairs,
    rotate,
    store_matrix,
    store_tile,
    store_vector,
    tile_mask,
)
from .tuning import SIZES, autotune


@triton.jit
def chunk_moments(
    x,
    strides,
    start,
    stop,
    VECTOR: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Mean and sum of squared deviations of each channel over some tokens, after Welford.

    Every row of the tile runs its own recurrence, so that nothing crosses threads before the end.
    """
    mean = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    squares = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    seen = 0.0
    for t0 in range(start, stop, BLOCK_N):
        seen += 1.0
        value = load_tile(x, strides, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
        mask = tile_mask(t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
        change = tl.where(mask, value - mean, 0.0)
        mean += change * (1 / seen)
        squares += change * (value - mean)
    rows = tl.arange(0, BLOCK_N)
    count = tl.maximum((stop - start - rows + BLOCK_N - 1) // BLOCK_N, 0).to(tl.float32)[:, None]
    total_mean = tl.sum(mean * count, 0) / (stop - start)
    deviation = mean - total_mean[None, :]
    return total_mean, tl.sum(squares + count * deviation * deviation, 0)


@triton.jit
def store_angle(
    mirror,
    row,
    theta,
    mean,
    squares,
    tokens,
    lam,
    alpha_max,
    VARIANCE_AWARE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write a head's mirror, see ``mirror_row``.

    ``Theta = theta + alpha_max sigmoid(z)``, ``z = lam / (variance + 1e-6)``, the variance being
    the mean of a block's two channel variances. ``dTheta/dvariance = -alpha_max lam sigmoid'(z) /
    (variance + 1e-6)^2``, where ``sigmoid'`` is 0 long before the square is.
    """
    PAIRS: tl.constexpr = HEAD_DIM // 2
    mirror = mirror_row(mirror, row, HEAD_DIM)
    angle = load_vector(theta, PAIRS, BLOCK_D // 2).to(tl.float32)
    if VARIANCE_AWARE:
        variance = tl.sum(tl.reshape(squares, (1, BLOCK_D // 2, 2)), 2) / (2 * tokens) + 1e-6
        z = lam / variance
        decay = tl.exp(-tl.abs(z))
        sigmoid = tl.where(z >= 0, 1.0, decay) / (1 + decay)
        angle += alpha_max * sigmoid
        slope = -alpha_max * lam * (decay / (1 + decay) / (1 + decay)) / (variance * variance)
        store_vector(mirror + 2 * PAIRS, tl.reshape(slope, (BLOCK_D // 2,)), PAIRS, BLOCK_D // 2)
        store_vector(mirror + 3 * PAIRS, mean, HEAD_DIM, BLOCK_D)
    angle = tl.reshape(2 * angle, (BLOCK_D // 2,))
    store_vector(mirror, tl.cos(angle), PAIRS, BLOCK_D // 2)
    store_vector(mirror + PAIRS, tl.sin(angle), PAIRS, BLOCK_D // 2)


@autotune('light')
@triton.jit(do_not_specialize=SIZES)
def angle_kernel(
    q,
    q_strides,
    k,
    k_strides,
    theta,
    theta_k,
    mirror,
    partial,
    counters,
    first_counter,
    group,
    tokens,
    heads,
    chunk,
    regime,
    lam,
    alpha_max,
    VARIANCE_AWARE: tl.constexpr,
    VECTOR: tl.constexpr,
    ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The mirrors of q (third grid index 0) and k (1), see :func:`store_angle`.

    Each split reduces mean and ``sum (x - mean)^2`` of each channel, where the angle needs them.
    """
    PAIRS: tl.constexpr = HEAD_DIM // 2
    head, start, stop = own_tokens(tokens, chunk)
    row = tl.program_id(2) * tl.num_programs(0) + head
    theta = (theta if tl.program_id(2) == 0 else theta_k) + (head % heads) * PAIRS
    if VARIANCE_AWARE:
        if tl.program_id(2) == 0:
            x = head_pointer(q, q_strides, head, heads, VECTOR)
            mean, squares = chunk_moments(
                x, q_strides, start, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D
            )
        else:
            x = head_pointer(k, k_strides, head, heads, VECTOR)
            mean, squares = chunk_moments(
                x, k_strides, start, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D
            )
        sums = own_row(partial, group, ROW)
        store_vector(sums, mean, HEAD_DIM, BLOCK_D)
        store_vector(sums + HEAD_DIM, squares, HEAD_DIM, BLOCK_D)
        mean, squares, last = merge_moments(
            partial, counters, first_counter, group, tokens, chunk, HEAD_DIM, ROW, BLOCK_D
        )
        if last:
            store_angle(
                mirror, row, theta, mean, squares, tokens, lam, alpha_max,
                VARIANCE_AWARE, HEAD_DIM, BLOCK_D,
            )  # fmt: skip
    else:
        store_angle(
            mirror, row, theta, None, None, tokens, lam, alpha_max,
            VARIANCE_AWARE, HEAD_DIM, BLOCK_D,
        )  # fmt: skip


@autotune('light')
@triton.jit(do_not_specialize=SIZES)
def mean_query_kernel(
    q,
    q_strides,
    mirror,
    mean_query,
    partial,
    counters,
    first_counter,
    group,
    tokens,
    heads,
    chunk,
    regime,
    FEATURE_MAP: tl.constexpr,
    VECTOR: tl.constexpr,
    ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Two means over the tokens; ``mean_query``: (B*H, 2, d).

    ``qbar = 1/N sum_t phi(q_t)``, and for the backward pass of the mirror, per block of the
    reflected query h, those of ``h1 [h2 > 0]`` and ``h2 [h1 > 0]``: what a gradient that is the
    same for all tokens, as that of qbar is, does to the angle.
    """
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads, VECTOR)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    crossed = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for t0 in range(start, stop, BLOCK_N):
        h, f = load_features(
            q, q_strides, cos, sin, t0, stop, VECTOR, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D
        )
        total += f
        if FEATURE_MAP == 'mirror':
            first, second = pairs(h)
            crossed += interleave(
                tl.where(second > 0, first, 0.0), tl.where(first > 0, second, 0.0)
            )
    sums = own_row(partial, group, ROW)
    store_vector(sums, tl.sum(total, 0) / tokens, HEAD_DIM, BLOCK_D)
    store_vector(sums + HEAD_DIM, tl.sum(crossed, 0) / tokens, HEAD_DIM, BLOCK_D)
    target = mean_query + head.to(tl.int64) * (2 * HEAD_DIM)
    merge_sums(partial, target, counters, first_counter, group, 2 * HEAD_DIM, ROW, 2 * BLOCK_D)


@autotune('product')
@triton.jit(do_not_specialize=SIZES)
def state_kernel(
    k,
    k_strides,
    v,
    v_strides,
    mirror,
    mean_query,
    table,
    positions,
    state,
    log_sum,
    partial,
    counters,
    first_counter,
    group,
    tokens,
    heads,
    chunk,
    regime,
    width,
    score_scale,
    RANK_AUGMENTED: tl.constexpr,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``S = sum_t w_t R(phi(k_t))^T v_t`` and ``m = sum_t w_t phi(k_t)``; ``w = softmax(s)``.

    A split sums with ``p_t = 2^(s_t - max s)`` for ``w_t``, the scores ``s_t = score_scale qbar .
    phi(k_t)`` in base 2 and a running maximum (online softmax); without rank augmentation ``p_t``
    is 1. ``state``: (B*H, d + 1, d), the last row m. ``log_sum``: (B*H,), ``log2 sum_t 2^s_t``.
    """
    SIZE: tl.constexpr = HEAD_DIM * (HEAD_DIM + 1)
    head, start, stop = own_tokens(tokens, chunk)
    k = head_pointer(k, k_strides, head, heads, VECTOR)
    v = head_pointer(v, v_strides, head, heads, VECTOR)
    cos, sin = load_mirror(mirror, tl.num_programs(0) + head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    if RANK_AUGMENTED:
        qbar = load_vector(mean_query + head.to(tl.int64) * (2 * HEAD_DIM), HEAD_DIM, BLOCK_D)
        qbar *= score_scale
        top = -float('inf')
    else:
        top = 0.0
    # What is summed over tokens alone stays apart for the rows of a tile until the end.
    total = tl.zeros((BLOCK_N,), tl.float32)
    normaliser = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    matrix = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    for t0 in range(start, stop, BLOCK_N):
        value = load_tile(v, v_strides, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
        _, f = load_features(
            k, k_strides, cos, sin, t0, stop, VECTOR, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D
        )
        rope_cos, rope_sin = load_rotation(
            table, positions, t0, stop, width, ROPE, HEAD_DIM, BLOCK_N, BLOCK_D
        )
        p = (t0 + tl.arange(0, BLOCK_N) < stop).to(tl.float32)
        if RANK_AUGMENTED:
            score = tl.where(p > 0, tl.sum(f * qbar, 1), -float('inf'))
            new_top = tl.maximum(top, tl.max(score, 0))
            p = tl.exp2(score - new_top)
            decay = tl.exp2(top - new_top)
            top = new_top
            total *= decay
            normaliser *= decay
            matrix *= decay
            f *= p[:, None]
        total += p
        normaliser += f
        matrix += dot(tl.trans(rotate(f, rope_cos, rope_sin, ROPE)), value, PRECISION)
    sums = own_row(partial, group, ROW)
    store_matrix(sums, matrix, HEAD_DIM, BLOCK_D)
    store_vector(sums + HEAD_DIM * HEAD_DIM, tl.sum(normaliser, 0), HEAD_DIM, BLOCK_D)
    tl.store(sums + SIZE, top)
    tl.store(sums + SIZE + 1, tl.sum(total, 0))
    state += head.to(tl.int64) * SIZE
    merge_softmax(
        partial, state, log_sum + head, counters, first_counter, group, SIZE, ROW, 8 * BLOCK_D
    )


@autotune('product')
@triton.jit(do_not_specialize=SIZES)
def output_kernel(
    q,
    q_strides,
    mirror,
    state,
    table,
    positions,
    out,
    out_strides,
    tokens,
    heads,
    chunk,
    regime,
    width,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``o_t = R(phi(q_t)) S / (phi(q_t) . m + 1e-6)``; the normaliser knows no rotation."""
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads, VECTOR)
    out = head_pointer(out, out_strides, head, heads, VECTOR)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    state += head.to(tl.int64) * (HEAD_DIM * (HEAD_DIM + 1))
    matrix = load_matrix(state, HEAD_DIM, BLOCK_D)
    normaliser = load_vector(state + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
    for t0 in range(start, stop, BLOCK_N):
        _, f, turned, _, _ = load_turned(
            q, q_strides, cos, sin, table, positions, t0, stop, width,
            ROPE, VECTOR, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        scale = 1 / (tl.sum(f * normaliser, 1) + 1e-6)
        value = dot(turned, matrix, PRECISION) * scale[:, None]
        if out.dtype.element_ty == tl.float16:
            # A nearly dead query divides by almost nothing: float16's largest number, not infinity.
            # Comparisons keep a NaN, which minimum and maximum on a GPU would hide.
            value = tl.where(value > 65504.0, 65504.0, value)
            value = tl.where(value < -65504.0, -65504.0, value)
        store_tile(out, out_strides, value, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
