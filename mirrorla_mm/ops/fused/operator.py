"""Registration with torch: what autograd, ``torch.compile`` and ``torch.export`` see.

Two operators, opaque to the compilers: the forward, whose further outputs are statistics for the
backward, and the backward, which has no derivative of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..options import Options
from . import passes
from .passes import Statistics

LIBRARY = 'mirrorla_mm'


@torch.library.custom_op(f'{LIBRARY}::mirror_attention', mutates_args=())
def mirror_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    feature_map: str,
    rank_augmented: bool,
    variance_aware: bool,
    lam: float,
    alpha_max: float,
    hw_shape: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output and :class:`~.passes.Statistics`; ``hw_shape`` is empty without RoPE."""
    grid: tuple = tuple(hw_shape)
    options = Options(feature_map, rank_augmented, variance_aware, lam, alpha_max, grid)
    out, statistics = passes.forward(q, k, v, theta, theta_k, options)
    return out, *statistics


@mirror_attention_op.register_fake
def _(q, k, v, theta, theta_k, *options):
    return passes.empty_out(v), *passes.empty_statistics(q, Options(*options))


@torch.library.custom_op(f'{LIBRARY}::mirror_attention_backward', mutates_args=())
def mirror_attention_backward_op(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    log_sum: Tensor,
    mean_query: Tensor,
    mirror: Tensor,
    needs: Sequence[bool],
    feature_map: str,
    rank_augmented: bool,
    variance_aware: bool,
    hw_shape: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the angles of q and of k; empty where ``needs`` is False."""
    grid: tuple = tuple(hw_shape)
    options = Options(feature_map, rank_augmented, variance_aware, math.nan, math.nan, grid)
    statistics = Statistics(state, log_sum, mean_query, mirror)
    gradients = passes.backward(grad_out, q, k, v, statistics, needs, options)
    filled = tuple(q.new_empty(0) if x is None else x for x in gradients)
    return filled  # type: ignore[return-value]


@mirror_attention_backward_op.register_fake
def _(grad_out, q, k, v, state, log_sum, mean_query, mirror, needs, *options):
    def angle() -> Tensor:
        return q.new_empty(q.shape[1], q.shape[3] // 2, dtype=torch.float32)

    makers = (
        lambda: passes.empty_out(q),
        lambda: passes.empty_out(k),
        lambda: passes.empty_out(v),
        angle,
        angle,
    )
    return tuple(make() if need else q.new_empty(0) for make, need in zip(makers, needs))


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, theta, theta_k, feature_map, rank_augmented, variance_aware, _, _, hw_shape = inputs
    ctx.save_for_backward(q, k, v, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.theta_dtypes = tuple(None if x is None else x.dtype for x in (theta, theta_k))
    ctx.options = (feature_map, rank_augmented, variance_aware, hw_shape)


def _backward(ctx, grad_out, *_):
    nothing = (None,) * 11
    if grad_out is None:
        return nothing
    needs = list(ctx.needs_input_grad[:5])
    shared = ctx.theta_dtypes[1] is None
    if shared:
        needs[4] = needs[3]
    *gradients, theta, theta_k = mirror_attention_backward_op(
        grad_out, *ctx.saved_tensors, needs, *ctx.options
    )
    if shared and needs[3]:
        theta = theta + theta_k
    of_theta = (
        x.to(dtype) if need and dtype is not None else None
        for x, need, dtype in zip((theta, theta_k), needs[3:], ctx.theta_dtypes)
    )
    return *(x if need else None for x, need in zip(gradients, needs)), *of_theta, *nothing[5:]


mirror_attention_op.register_autograd(_backward, setup_context=_setup_context)


def _refuse(ctx, *_):
    raise RuntimeError(
        'The fused mirror attention can be differentiated once only; for second-order gradients '
        "run it under mirrorla_mm.ops.use_backend('torch')."
    )


mirror_attention_backward_op.register_autograd(
    _refuse, setup_context=lambda ctx, inputs, output: None
)


def mirror_attention_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options,
) -> Tensor:
    """:func:`~mirrorla_mm.ops.mirror_attention` by the fused kernels."""
    if not options.mirrors:
        theta = theta_k = None
    *flags, hw_shape = options
    return mirror_attention_op(q, k, v, theta, theta_k, *flags, hw_shape or ())[0]
