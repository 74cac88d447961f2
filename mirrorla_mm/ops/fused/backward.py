# mypy: disable-error-code="no-untyped-def"
"""Backward kernels, on the forward's grid; derived in docs/mirror_attention_backward.md.

Features, rotations and weights are computed again from q, k, v. Each of the two kernels can reduce
over the tokens, write gradients of the tokens, or both: where a gradient needs a sum over all
tokens first (of the angle, of the mean query) it is launched twice.
"""

import triton
import triton.language as tl

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
    own_row,
    own_tokens,
    reflect,
    rotate,
    store_matrix,
    store_tile,
    store_vector,
)
from .tuning import autotune

_SIZES = ('tokens', 'heads', 'regime', 'splits', 'height', 'width')


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
    head,
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
        mirror += head.to(tl.int64) * (5 * PAIRS)
        slope = load_vector(mirror + 2 * PAIRS, PAIRS, BLOCK_D // 2)
        change = (
            load_vector(angle_grad + head.to(tl.int64) * PAIRS, PAIRS, BLOCK_D // 2)
            * slope
            / tokens
        )
        pull = interleave(change, change)
        mean = load_vector(mirror + 3 * PAIRS, HEAD_DIM, BLOCK_D)
    return pull, mean


@autotune('backward')
@triton.jit(do_not_specialize=_SIZES)
def query_backward_kernel(
    q,
    q_strides,
    grad_out,
    grad_out_strides,
    mirror,
    state,
    table,
    mean_query_grad,
    angle_grad,
    partial,
    q_grad,
    q_grad_strides,
    tokens,
    heads,
    chunk,
    regime,
    height,
    width,
    REDUCE: tl.constexpr,
    WRITE: tl.constexpr,
    RANK_AUGMENTED: tl.constexpr,
    VARIANCE_AWARE: tl.constexpr,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients through the output. ``f = phi(q_t)``, ``z = 1 / (f . m + 1e-6)``, ``u = R^T S g``:

    - ``dy = -z^2 f . u``, the gradient of the normaliser ``1 / z``
    - reduced: ``dS = sum R(f)^T (z g)``, ``dm = sum dy f``, and for the mirror ``dTheta`` but
      for the part of dqbar, which is not known here
    - written: ``df = z u + dy m + dqbar / N`` through phi.

    ``partial``: (B*H, splits, d^2 + d + d/2): dS, dm, dTheta.
    """
    head, start, stop = own_tokens(tokens, chunk)
    q = head_pointer(q, q_strides, head, heads)
    grad_out = head_pointer(grad_out, grad_out_strides, head, heads)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    state += head.to(tl.int64) * (HEAD_DIM * (HEAD_DIM + 1))
    matrix = load_matrix(state, HEAD_DIM, BLOCK_D)
    normaliser = load_vector(state + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
    if WRITE:
        q_grad = head_pointer(q_grad, q_grad_strides, head, heads)
        pull, mean = load_pull(mirror, angle_grad, head, tokens, VARIANCE_AWARE, HEAD_DIM, BLOCK_D)
        if RANK_AUGMENTED:
            qbar_grad = (
                load_vector(mean_query_grad + head.to(tl.int64) * HEAD_DIM, HEAD_DIM, BLOCK_D)
                / tokens
            )
    if REDUCE:
        state_grad = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
        normaliser_grad = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        theta_grad = tl.zeros((BLOCK_N, BLOCK_D // 2), tl.float32)
    for t0 in range(start, stop, BLOCK_N):
        g = load_tile(grad_out, grad_out_strides, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
        h, f, turned, rope_cos, rope_sin = load_turned(
            q, q_strides, cos, sin, table, t0, stop, tokens, height, width,
            ROPE, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        z = 1 / (tl.sum(f * normaliser, 1) + 1e-6)[:, None]
        if REDUCE:
            # z goes with the features, so that g is an operand as it was loaded.
            state_grad += dot(tl.trans(turned * z), g, PRECISION)
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
            store_tile(q_grad, q_grad_strides, value, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
    if REDUCE:
        PAIRS: tl.constexpr = HEAD_DIM // 2
        partial = own_row(partial, HEAD_DIM * (HEAD_DIM + 1) + PAIRS)
        store_matrix(partial, state_grad, HEAD_DIM, BLOCK_D)
        partial += HEAD_DIM * HEAD_DIM
        store_vector(partial, tl.sum(normaliser_grad, 0), HEAD_DIM, BLOCK_D)
        store_vector(partial + HEAD_DIM, tl.sum(theta_grad, 0), PAIRS, BLOCK_D // 2)


@autotune('backward')
@triton.jit(do_not_specialize=_SIZES)
def key_backward_kernel(
    k,
    k_strides,
    v,
    v_strides,
    mirror,
    state,
    state_grad,
    mean_query,
    log_sum,
    table,
    angle_grad,
    partial,
    k_grad,
    k_grad_strides,
    v_grad,
    v_grad_strides,
    tokens,
    heads,
    chunk,
    regime,
    height,
    width,
    score_scale,
    REDUCE: tl.constexpr,
    WRITE_K: tl.constexpr,
    WRITE_V: tl.constexpr,
    RANK_AUGMENTED: tl.constexpr,
    VARIANCE_AWARE: tl.constexpr,
    ROPE: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients through the state. With ``f = phi(k_t)``, the weight w, ``u = R^T dS v_t + dm``:

    - written: ``dv = w R(f) dS``, ``df = w u + ds qbar / sqrt(d)`` through phi
    - ``ds = w (f . u - delta)``, ``delta = <dS, S> + <dm, m>`` (softmax), 0 for plain
    - reduced: ``dqbar = sum ds f / sqrt(d)``, and ``dTheta`` for the mirror.

    ``state_grad``: rows of which d^2 + d numbers are dS and dm. ``partial``: (B*H, splits, 3d/2):
    dqbar, dTheta.
    """
    LN2: tl.constexpr = 0.6931471805599453
    head, start, stop = own_tokens(tokens, chunk)
    wide_head = head.to(tl.int64)
    k = head_pointer(k, k_strides, head, heads)
    v = head_pointer(v, v_strides, head, heads)
    cos, sin = load_mirror(mirror, head, FEATURE_MAP, HEAD_DIM, BLOCK_D)
    state_grad += wide_head * (HEAD_DIM * (HEAD_DIM + 1) + HEAD_DIM // 2)
    matrix = load_matrix(state_grad, HEAD_DIM, BLOCK_D)
    normaliser_grad = load_vector(state_grad + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
    if RANK_AUGMENTED:
        state += wide_head * (HEAD_DIM * (HEAD_DIM + 1))
        delta = tl.sum(matrix * load_matrix(state, HEAD_DIM, BLOCK_D))
        delta += tl.sum(
            normaliser_grad * load_vector(state + HEAD_DIM * HEAD_DIM, HEAD_DIM, BLOCK_D)
        )
        qbar = load_vector(mean_query + wide_head * (2 * HEAD_DIM), HEAD_DIM, BLOCK_D) * score_scale
        log_total = tl.load(log_sum + wide_head)
    if REDUCE:
        qbar_grad = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        theta_grad = tl.zeros((BLOCK_N, BLOCK_D // 2), tl.float32)
    if WRITE_K:
        k_grad = head_pointer(k_grad, k_grad_strides, head, heads)
        pull, mean = load_pull(mirror, angle_grad, head, tokens, VARIANCE_AWARE, HEAD_DIM, BLOCK_D)
    if WRITE_V:
        v_grad = head_pointer(v_grad, v_grad_strides, head, heads)
    for t0 in range(start, stop, BLOCK_N):
        value = load_tile(v, v_strides, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
        h, f, turned, rope_cos, rope_sin = load_turned(
            k, k_strides, cos, sin, table, t0, stop, tokens, height, width,
            ROPE, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        if RANK_AUGMENTED:
            weight = tl.exp2(tl.sum(f * qbar, 1) - log_total)[:, None]
        else:
            weight = 1.0 / tokens
        if WRITE_V:
            v_value = weight * dot(turned, matrix, PRECISION)
            store_tile(v_grad, v_grad_strides, v_value, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
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
                store_tile(k_grad, k_grad_strides, k_value, t0, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
    if REDUCE:
        PAIRS: tl.constexpr = HEAD_DIM // 2
        partial = own_row(partial, 3 * PAIRS)
        store_vector(partial, tl.sum(qbar_grad, 0) * score_scale, HEAD_DIM, BLOCK_D)
        store_vector(partial + HEAD_DIM, tl.sum(theta_grad, 0), PAIRS, BLOCK_D // 2)
