# mypy: disable-error-code="no-untyped-def"
"""Forward kernels. All but the two smallest run on a grid of (B*H heads, splits of the tokens).

A split is ``chunk`` tokens, walked ``BLOCK_N`` at a time. What it sums goes to a row of its own,
and the rows are added in a fixed order: no atomics, the same bits every time.
"""

import triton
import triton.language as tl

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
    own_row,
    own_tokens,
    pairs,
    rotate,
    store_matrix,
    store_tile,
    store_vector,
    tile_mask,
)
from .tuning import autotune

_SIZES = ('tokens', 'heads', 'regime', 'splits', 'height', 'width')


@triton.jit(do_not_specialize=_SIZES)
def rope_table_kernel(table, height, width, QUARTER: tl.constexpr, BLOCK: tl.constexpr):
    """cos and sin of ``position * 10000^(-j / (d/4 - 1))`` for all rows, then all columns.

    In float64: the angles reach hundreds of radians, where a float32 product is off by 1e-5.
    """
    positions = height + width
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position, j = index // QUARTER, index % QUARTER
    position = tl.where(position < height, position, position - height)
    LOG2_BASE: tl.constexpr = 13.287712379549449
    frequency = tl.exp2(j.to(tl.float64) * (-LOG2_BASE / max(QUARTER - 1, 1)))
    angle = position.to(tl.float64) * frequency
    inside = index < positions * QUARTER
    tl.store(table + index, tl.cos(angle).to(tl.float32), mask=inside)
    tl.store(table + positions * QUARTER + index, tl.sin(angle).to(tl.float32), mask=inside)


@triton.jit
def chunk_moments(
    x,
    strides,
    start,
    stop,
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
        value = load_tile(x, strides, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
        mask = tile_mask(t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
        change = tl.where(mask, value - mean, 0.0)
        mean += change * (1 / seen)
        squares += change * (value - mean)
    rows = tl.arange(0, BLOCK_N)
    count = tl.maximum((stop - start - rows + BLOCK_N - 1) // BLOCK_N, 0).to(tl.float32)[:, None]
    total_mean = tl.sum(mean * count, 0) / (stop - start)
    deviation = mean - total_mean[None, :]
    return total_mean, tl.sum(squares + count * deviation * deviation, 0)


@autotune('light')
@triton.jit(do_not_specialize=_SIZES)
def moments_kernel(
    q,
    q_strides,
    k,
    k_strides,
    partial,
    tokens,
    heads,
    chunk,
    regime,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Per split, mean and ``sum (x - mean)^2`` of each channel of q (third grid index 0) or k (1).

    ``partial``: (2, B*H, splits, 2, d).
    """
    head, start, stop = own_tokens(tokens, chunk)
    if tl.program_id(2) == 0:
        x = head_pointer(q, q_strides, head, heads)
        mean, squares = chunk_moments(x, q_strides, start, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
    else:
        x = head_pointer(k, k_strides, head, heads)
        mean, squares = chunk_moments(x, k_strides, start, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
    partial = own_row(partial, 2 * HEAD_DIM)
    store_vector(partial, mean, HEAD_DIM, BLOCK_D)
    store_vector(partial + HEAD_DIM, squares, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=_SIZES)
def mirror_kernel(
    partial,
    theta_q,
    theta_k,
    mirror,
    tokens,
    heads,
    chunk,
    splits,
    lam,
    alpha_max,
    VARIANCE_AWARE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The mirrors of q (second grid index 0) and k (1) of one head.

    ``Theta = theta + alpha_max sigmoid(z)``, ``z = lam / (variance + 1e-6)``, the variance being
    the mean of a block's two channel variances. Splits merge after Chan et al.:
    ``M2 = sum_i M2_i + n_i (mean_i - mean)^2``.

    ``mirror``: (2, B*H, 5, d/2), see ``load_mirror``. ``dTheta/dvariance = -alpha_max lam
    sigmoid'(z) / (variance + 1e-6)^2``, where ``sigmoid'`` is 0 long before the square is.
    """
    PAIRS: tl.constexpr = HEAD_DIM // 2
    head, which = tl.program_id(0), tl.program_id(1)
    row = (which * tl.num_programs(0) + head).to(tl.int64)
    theta = theta_q if which == 0 else theta_k
    angle = load_vector(theta + (head % heads) * PAIRS, PAIRS, BLOCK_D // 2).to(tl.float32)
    mirror += row * (5 * PAIRS)
    if VARIANCE_AWARE:
        partial += row * splits * (2 * HEAD_DIM)
        channel = tl.arange(0, BLOCK_D)
        mean = tl.zeros((BLOCK_D,), tl.float32)
        squares = tl.zeros((BLOCK_D,), tl.float32)
        for s0 in range(0, splits, BLOCK_S):
            split = s0 + tl.arange(0, BLOCK_S)
            mask = (split < splits)[:, None] & (channel < HEAD_DIM)[None, :]
            count = tl.maximum(tl.minimum(tokens - split * chunk, chunk), 0).to(tl.float32)[:, None]
            part = tl.load(
                partial + split[:, None] * (2 * HEAD_DIM) + channel[None, :], mask=mask, other=0.0
            )
            mean += tl.sum(part * count, 0) / tokens
        for s0 in range(0, splits, BLOCK_S):
            split = s0 + tl.arange(0, BLOCK_S)
            mask = (split < splits)[:, None] & (channel < HEAD_DIM)[None, :]
            count = tl.maximum(tl.minimum(tokens - split * chunk, chunk), 0).to(tl.float32)[:, None]
            row_pointer = partial + split[:, None] * (2 * HEAD_DIM) + channel[None, :]
            deviation = tl.load(row_pointer, mask=mask, other=0.0) - mean[None, :]
            squares += tl.sum(tl.load(row_pointer + HEAD_DIM, mask=mask, other=0.0), 0)
            squares += tl.sum(count * deviation * deviation, 0)
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
@triton.jit(do_not_specialize=_SIZES)
def mean_query_kernel(
    q,
    q_strides,
    mirror,
    partial,
    tokens,
    heads,
    chunk,
    regime,
    FEATURE_MAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Per split, its share of two means over the tokens.

    ``qbar = 1/N sum_t phi(q_t)``, and for the backward pass of the mirror, per block of the
    reflected query h, those of ``h1 [h2 > 0]`` and ``h2 [h1 > 0]``: what a gradient that is the
    same for all tokens, as that of qbar is, does to the angle. ``partial``: (B*H, splits, 2, d).
    """
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    crossed = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for t0 in range(start, stop, BLOCK_N):
        h, f = load_features(
            q, q_strides, cos, sin, t0, stop, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D
        )
        total += f
        if FEATURE_MAP == 'mirror':
            first, second = pairs(h)
            crossed += interleave(
                tl.where(second > 0, first, 0.0), tl.where(first > 0, second, 0.0)
            )
    partial = own_row(partial, 2 * HEAD_DIM)
    store_vector(partial, tl.sum(total, 0) / tokens, HEAD_DIM, BLOCK_D)
    store_vector(partial + HEAD_DIM, tl.sum(crossed, 0) / tokens, HEAD_DIM, BLOCK_D)


@autotune('product')
@triton.jit(do_not_specialize=_SIZES)
def state_kernel(
    k,
    k_strides,
    v,
    v_strides,
    mirror,
    mean_query,
    table,
    partial,
    scale,
    tokens,
    heads,
    chunk,
    regime,
    height,
    width,
    score_scale,
    RANK_AUGMENTED: tl.constexpr,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Per split, ``S = sum_t p_t R(phi(k_t))^T v_t`` and ``m = sum_t p_t phi(k_t)``, unnormalised.

    ``p_t = 2^(s_t - max s)`` with the scores ``s_t = score_scale qbar . phi(k_t)`` and a running
    maximum (online softmax), or 1 without rank augmentation.

    ``partial``: (B*H, splits, d + 1, d), the last row m. ``scale``: (B*H, splits, 2), the maximum
    and ``sum_t p_t``.
    """
    head, start, stop = own_tokens(tokens, chunk)
    k = head_pointer(k, k_strides, head, heads)
    v = head_pointer(v, v_strides, head, heads)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    if RANK_AUGMENTED:
        qbar = (
            load_vector(mean_query + head.to(tl.int64) * (2 * HEAD_DIM), HEAD_DIM, BLOCK_D)
            * score_scale
        )
        top = -float('inf')
    else:
        top = 0.0
    # What is summed over tokens alone stays apart for the rows of a tile until the end.
    total = tl.zeros((BLOCK_N,), tl.float32)
    normaliser = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    state = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    for t0 in range(start, stop, BLOCK_N):
        value = load_tile(v, v_strides, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
        _, f = load_features(
            k, k_strides, cos, sin, t0, stop, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D
        )
        rope_cos, rope_sin = load_rotation(
            table, t0, tokens, height, width, ROPE, HEAD_DIM, BLOCK_N, BLOCK_D
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
            state *= decay
            f *= p[:, None]
        total += p
        normaliser += f
        state += dot(tl.trans(rotate(f, rope_cos, rope_sin, ROPE)), value, PRECISION)
    partial = own_row(partial, HEAD_DIM * (HEAD_DIM + 1))
    store_matrix(partial, state, HEAD_DIM, BLOCK_D)
    store_vector(partial + HEAD_DIM * HEAD_DIM, tl.sum(normaliser, 0), HEAD_DIM, BLOCK_D)
    scale = own_row(scale, 2)
    tl.store(scale, top)
    tl.store(scale + 1, tl.sum(total, 0))


@triton.jit(do_not_specialize=_SIZES)
def merge_state_kernel(
    partial,
    scale,
    state,
    log_sum,
    splits,
    SIZE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``sum_i 2^(top_i - L) (S_i, m_i)`` over the splits, ``L = log2 sum_i 2^top_i total_i``.

    Grid: (B*H, blocks of the ``SIZE = d (d + 1)`` numbers). ``log_sum``: (B*H,).
    """
    head = tl.program_id(0).to(tl.int64)
    scale += head * splits * 2
    top = -float('inf')
    for s0 in range(0, splits, BLOCK_S):
        split = s0 + tl.arange(0, BLOCK_S)
        top = tl.maximum(
            top, tl.max(tl.load(scale + split * 2, mask=split < splits, other=-float('inf')), 0)
        )
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    partial += head * splits * SIZE
    total = 0.0
    summed = tl.zeros((BLOCK,), tl.float32)
    for s0 in range(0, splits, BLOCK_S):
        split = s0 + tl.arange(0, BLOCK_S)
        inside = split < splits
        weight = tl.exp2(tl.load(scale + split * 2, mask=inside, other=-float('inf')) - top)
        total += tl.sum(weight * tl.load(scale + split * 2 + 1, mask=inside, other=0.0), 0)
        part = tl.load(
            partial + split[:, None] * SIZE + index[None, :],
            mask=inside[:, None] & (index < SIZE)[None, :],
            other=0.0,
        )
        summed += tl.sum(part * weight[:, None], 0)
    tl.store(state + head * SIZE + index, summed / total, mask=index < SIZE)
    if tl.program_id(1) == 0:
        tl.store(log_sum + head, top + tl.log2(total))


@autotune('product')
@triton.jit(do_not_specialize=_SIZES)
def output_kernel(
    q,
    q_strides,
    mirror,
    state,
    table,
    out,
    out_strides,
    tokens,
    heads,
    chunk,
    regime,
    height,
    width,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``o_t = R(phi(q_t)) S / (phi(q_t) . m + 1e-6)``; the normaliser knows no rotation."""
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads)
    out = head_pointer(out, out_strides, head, heads)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    state += head.to(tl.int64) * (HEAD_DIM * (HEAD_DIM + 1))
    matrix = load_matrix(state, HEAD_DIM, BLOCK_D)
    normaliser = load_vector(state + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
    for t0 in range(start, stop, BLOCK_N):
        _, f, turned, _, _ = load_turned(
            q, q_strides, cos, sin, table, t0, stop, tokens, height, width,
            ROPE, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        scale = 1 / (tl.sum(f * normaliser, 1) + 1e-6)
        value = dot(turned, matrix, PRECISION) * scale[:, None]
        if out.dtype.element_ty == tl.float16:
            # A nearly dead query divides by almost nothing: float16's largest number, not infinity.
            # Comparisons keep a NaN, which minimum and maximum on a GPU would hide.
            value = tl.where(value > 65504.0, 65504.0, value)
            value = tl.where(value < -65504.0, -65504.0, value)
        store_tile(out, out_strides, value, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
