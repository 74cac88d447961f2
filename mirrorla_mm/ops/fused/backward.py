# mypy: disable-error-code="no-untyped-def"
"""Backward kernels, on the forward's grid; derived in docs/mirror_attention_backward.md.

Features, rotations and weights are computed again from q, k, v. Each of the two kernels can reduce
over the tokens, write gradients of the tokens, or both: where a gradient needs a sum over all
tokens first (of the angle, of the mean query) it is launched twice.

Their loops fetch a tile while the one before it is computed (``num_stages``).
"""

import triton
import triton.language as tl

from .merging import merge_sums, own_row
from .tiles import (
    angle_gradient,
    dot,
    feature_gradient,
    head_pointer,
    interleave,
    load_matrix,
    load_mirror,
    load_tile,
    load_turned,
    load_vector,
    mirror_row,
    own_tokens,
    pairs,
    reflect,
    rotate,
    store_matrix,
    store_tile,
    store_vector,
)
from .tuning import SIZES, autotune


@triton.jit
def input_gradient(
    h, h_grad, cos, sin, pull, mean, FEATURE_MAP: tl.constexpr, VARIANCE_AWARE: tl.constexpr
):
    """``dx_t = H dh_t + pull (x_t - mean)``, with ``x = H h`` and one ``pull`` per block."""
    if VARIANCE_AWARE:
        return reflect(h_grad + pull * h, cos, sin, FEATURE_MAP) - pull * mean
    return reflect(h_grad, cos, sin, FEATURE_MAP)


@triton.jit
def load_pull(
    mirror,
    angle_grad,
    row,
    tokens,
    VARIANCE_AWARE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``dTheta (dTheta/dvariance) / N`` for both channels of a block, and the mean; (1, d)."""
    pull = tl.zeros((1, BLOCK_D), tl.float32)
    mean = pull
    if VARIANCE_AWARE:
        PAIRS: tl.constexpr = HEAD_DIM // 2
        start = mirror_row(mirror, row, HEAD_DIM)
        slope = load_vector(start + 2 * PAIRS, PAIRS, BLOCK_D // 2)
        change = load_vector(angle_grad + row.to(tl.int64) * PAIRS, PAIRS, BLOCK_D // 2)
        change *= slope / tokens
        pull = interleave(change, change)
        mean = load_vector(start + 3 * PAIRS, HEAD_DIM, BLOCK_D)
    return pull, mean


@triton.jit
def shared_gradient(grad, crossed):
    """Gradient of Theta, (1, d/2), from one of the mean feature: the same for every token.

    ``2 (grad_2 A - grad_1 B)``, where A and B are the means of ``h1 [h2 > 0]`` and ``h2 [h1 > 0]``.
    """
    first, second = pairs(grad)
    crossed_first, crossed_second = pairs(crossed)
    return 2 * (second * crossed_first - first * crossed_second)


@autotune('backward')
@triton.jit(do_not_specialize=SIZES)
def query_backward_kernel(
    q,
    q_strides,
    grad_out,
    grad_out_strides,
    out,
    out_strides,
    mirror,
    state,
    table,
    positions,
    state_grad,
    mean_query_grad,
    angle_grad,
    q_grad,
    q_grad_strides,
    partial,
    counters,
    first_counter,
    group,
    tokens,
    heads,
    chunk,
    regime,
    width,
    REDUCE: tl.constexpr,
    WRITE: tl.constexpr,
    RANK_AUGMENTED: tl.constexpr,
    VARIANCE_AWARE: tl.constexpr,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients through the output. ``f = phi(q_t)``, ``z = 1 / (f . m + 1e-6)``, ``u = R^T S g``:

    - ``dy = -z^2 f . u``, the gradient of the normaliser ``1 / z``
    - reduced: ``dS = sum R(f)^T (z g)``, ``dm = sum dy f``, and for the mirror ``dTheta`` but
      for the part of dqbar, which is not known here
    - written: ``df = z u + dy m + dqbar / N`` through phi.

    ``out`` is there in float16 alone: where it is float16's largest number, g is 0.
    ``state_grad``: (B*H, d^2 + d + d // 2): dS, dm, dTheta. The last goes to ``angle_grad`` (2,
    B*H, d // 2), too.
    """
    PAIRS: tl.constexpr = HEAD_DIM // 2
    SIZE: tl.constexpr = HEAD_DIM * (HEAD_DIM + 1) + PAIRS
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads, VECTOR)
    grad_out = head_pointer(grad_out, grad_out_strides, head, heads, VECTOR)
    if out is not None:
        out = head_pointer(out, out_strides, head, heads, VECTOR)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    state += head.to(tl.int64) * (HEAD_DIM * (HEAD_DIM + 1))
    matrix = load_matrix(state, HEAD_DIM, BLOCK_D)
    normaliser = load_vector(state + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
    if WRITE:
        q_grad = head_pointer(q_grad, q_grad_strides, head, heads, VECTOR)
        pull, mean = load_pull(mirror, angle_grad, head, tokens, VARIANCE_AWARE, HEAD_DIM, BLOCK_D)
        if RANK_AUGMENTED:
            mean_query_grad += head.to(tl.int64) * (HEAD_DIM + PAIRS)
            qbar_grad = load_vector(mean_query_grad, HEAD_DIM, BLOCK_D) / tokens
    if REDUCE:
        matrix_grad = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
        normaliser_grad = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        theta_grad = tl.zeros((BLOCK_N, BLOCK_D // 2), tl.float32)
    for t0 in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        g = load_tile(grad_out, grad_out_strides, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
        if out is not None:
            value = load_tile(out, out_strides, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
            g = tl.where(tl.abs(value) < 65504.0, g, 0.0)
        h, f, turned, rope_cos, rope_sin = load_turned(
            q, q_strides, cos, sin, table, positions, t0, stop, width,
            ROPE, VECTOR, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        z = 1 / (tl.sum(f * normaliser, 1) + 1e-6)[:, None]
        if REDUCE:
            # z goes with the features, so that g is an operand as it was loaded.
            matrix_grad += dot(tl.trans(turned * z), g, PRECISION)
        u = rotate(dot(g, tl.trans(matrix), PRECISION), rope_cos, -rope_sin, ROPE)
        y_grad = -z * z * tl.sum(f * u, 1)[:, None]
        f_grad = z * u + y_grad * normaliser
        if REDUCE:
            normaliser_grad += y_grad * f
            if FEATURE_MAP == 'mirror':
                theta_grad += angle_gradient(h, feature_gradient(h, f_grad, FEATURE_MAP))
        if WRITE:
            if RANK_AUGMENTED:
                f_grad += qbar_grad
            h_grad = feature_gradient(h, f_grad, FEATURE_MAP)
            value = input_gradient(h, h_grad, cos, sin, pull, mean, FEATURE_MAP, VARIANCE_AWARE)
            store_tile(q_grad, q_grad_strides, value, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
    if REDUCE:
        sums = own_row(partial, group, ROW)
        store_matrix(sums, matrix_grad, HEAD_DIM, BLOCK_D)
        sums += HEAD_DIM * HEAD_DIM
        store_vector(sums, tl.sum(normaliser_grad, 0), HEAD_DIM, BLOCK_D)
        store_vector(sums + HEAD_DIM, tl.sum(theta_grad, 0), PAIRS, BLOCK_D // 2)
        state_grad += head.to(tl.int64) * SIZE
        last = merge_sums(
            partial, state_grad, counters, first_counter, group, SIZE, ROW, 8 * BLOCK_D
        )
        if last:
            merged = load_vector(state_grad + SIZE - PAIRS, PAIRS, BLOCK_D // 2)
            angle_grad += head.to(tl.int64) * PAIRS
            store_vector(angle_grad, tl.reshape(merged, (BLOCK_D // 2,)), PAIRS, BLOCK_D // 2)


@autotune('backward')
@triton.jit(do_not_specialize=SIZES)
def key_backward_kernel(
    k,
    k_strides,
    v,
    v_strides,
    mirror,
    state,
    table,
    positions,
    state_grad,
    mean_query,
    log_sum,
    mean_query_grad,
    angle_grad,
    k_grad,
    k_grad_strides,
    v_grad,
    v_grad_strides,
    v_more,
    v_more_strides,
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
    REDUCE: tl.constexpr,
    WRITE_K: tl.constexpr,
    WRITE_V: tl.constexpr,
    RANK_AUGMENTED: tl.constexpr,
    VARIANCE_AWARE: tl.constexpr,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients through the state. With ``f = phi(k_t)``, the weight w, ``u = R^T dS v_t + dm``:

    - written: ``dv = w R(f) dS``, plus ``v_more``, the gradient of v's other uses, if any;
      ``df = w u + ds qbar / sqrt(d)`` through phi
    - ``ds = w (f . u - delta)``, ``delta = <dS, S> + <dm, m>`` (softmax), 0 for plain
    - reduced: ``dqbar = sum ds f / sqrt(d)``, and ``dTheta`` for the mirror: that of k, and with
      dqbar that of q.

    ``state_grad``: see ``query_backward_kernel``. ``mean_query_grad``: (B*H, d + d // 2), dqbar
    and dTheta of k; the latter goes to ``angle_grad`` (2, B*H, d // 2), too.
    """
    LN2: tl.constexpr = 0.6931471805599453
    PAIRS: tl.constexpr = HEAD_DIM // 2
    SIZE: tl.constexpr = HEAD_DIM * (HEAD_DIM + 1)
    head, start, stop = own_tokens(tokens, chunk)
    wide_head = head.to(tl.int64)
    row = tl.num_programs(0) + head
    k = head_pointer(k, k_strides, head, heads, VECTOR)
    v = head_pointer(v, v_strides, head, heads, VECTOR)
    cos, sin = load_mirror(mirror, row, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    state_grad += wide_head * (SIZE + PAIRS)
    matrix = load_matrix(state_grad, HEAD_DIM, BLOCK_D)
    normaliser_grad = load_vector(state_grad + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
    if RANK_AUGMENTED:
        state += wide_head * SIZE
        delta = tl.sum(matrix * load_matrix(state, HEAD_DIM, BLOCK_D))
        delta += tl.sum(
            normaliser_grad * load_vector(state + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
        )
        mean_query += wide_head * (2 * HEAD_DIM)
        qbar = load_vector(mean_query, HEAD_DIM, BLOCK_D) * score_scale
        log_total = tl.load(log_sum + wide_head)
    if REDUCE:
        qbar_grad = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        theta_grad = tl.zeros((BLOCK_N, BLOCK_D // 2), tl.float32)
    if WRITE_K:
        k_grad = head_pointer(k_grad, k_grad_strides, head, heads, VECTOR)
        pull, mean = load_pull(mirror, angle_grad, row, tokens, VARIANCE_AWARE, HEAD_DIM, BLOCK_D)
    if WRITE_V:
        v_grad = head_pointer(v_grad, v_grad_strides, head, heads, VECTOR)
        if v_more is not None:
            v_more = head_pointer(v_more, v_more_strides, head, heads, VECTOR)
    for t0 in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        value = load_tile(v, v_strides, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
        h, f, turned, rope_cos, rope_sin = load_turned(
            k, k_strides, cos, sin, table, positions, t0, stop, width,
            ROPE, VECTOR, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        if RANK_AUGMENTED:
            # Large scores, summed in another order than the forward's, may exceed their own total:
            # no weight is beyond 1. The comparison keeps a NaN, as tl.minimum would not.
            exponent = tl.sum(f * qbar, 1) - log_total
            weight = tl.exp2(tl.where(exponent > 0, 0.0, exponent))[:, None]
        else:
            weight = 1.0 / tokens
        if WRITE_V:
            v_value = weight * dot(turned, matrix, PRECISION)
            if v_more is not None:
                v_value += load_tile(
                    v_more, v_more_strides, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D
                )
            store_tile(
                v_grad, v_grad_strides, v_value, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D
            )
        if REDUCE or WRITE_K:
            u = dot(value, tl.trans(matrix), PRECISION)
            u = rotate(u, rope_cos, -rope_sin, ROPE) + normaliser_grad
            f_grad = weight * u
            if RANK_AUGMENTED:
                s_grad = weight * (tl.sum(f * u, 1)[:, None] - delta) * LN2
                f_grad += s_grad * qbar
                if REDUCE:
                    qbar_grad += s_grad * f
            h_grad = feature_gradient(h, f_grad, FEATURE_MAP)
            if REDUCE and FEATURE_MAP == 'mirror':
                theta_grad += angle_gradient(h, h_grad)
            if WRITE_K:
                k_value = input_gradient(
                    h, h_grad, cos, sin, pull, mean, FEATURE_MAP, VARIANCE_AWARE
                )
                store_tile(
                    k_grad, k_grad_strides, k_value, t0, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D
                )
    if REDUCE:
        sums = own_row(partial, group, ROW)
        store_vector(sums, tl.sum(qbar_grad, 0) * score_scale, HEAD_DIM, BLOCK_D)
        store_vector(sums + HEAD_DIM, tl.sum(theta_grad, 0), PAIRS, BLOCK_D // 2)
        mean_query_grad += wide_head * (HEAD_DIM + PAIRS)
        last = merge_sums(
            partial, mean_query_grad, counters, first_counter, group,
            HEAD_DIM + PAIRS, ROW, 2 * BLOCK_D,
        )  # fmt: skip
        if last:
            merged = load_vector(mean_query_grad + HEAD_DIM, PAIRS, BLOCK_D // 2)
            key_angle = angle_grad + row.to(tl.int64) * PAIRS
            store_vector(key_angle, tl.reshape(merged, (BLOCK_D // 2,)), PAIRS, BLOCK_D // 2)
            if RANK_AUGMENTED and FEATURE_MAP == 'mirror':
                merged = load_vector(state_grad + SIZE, PAIRS, BLOCK_D // 2)
                merged += shared_gradient(
                    load_vector(mean_query_grad, HEAD_DIM, BLOCK_D),
                    load_vector(mean_query + HEAD_DIM, HEAD_DIM, BLOCK_D),
                )
                query_angle = angle_grad + wide_head * PAIRS
                store_vector(query_angle, tl.reshape(merged, (BLOCK_D // 2,)), PAIRS, BLOCK_D // 2)
