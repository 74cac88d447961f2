"""Registration with torch: what autograd, ``torch.compile`` and ``torch.export`` see.

Two operators, opaque to the compilers: the forward, whose further outputs are statistics for the
backward, and the backward, which has no derivative of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ..mirror_attention import mirror_attention_reference
from ..options import Options
from . import passes
from .passes import Statistics

LIBRARY = 'mirrorla_mm'
ONCE_ONLY = (
    'The fused mirror attention can be differentiated once only; for second-order gradients '
    "run it under mirrorla_mm.ops.use_backend('torch')."
)


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
    shared: bool,
    feature_map: str,
    rank_augmented: bool,
    variance_aware: bool,
    lam: float,
    alpha_max: float,
    hw_shape: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, theta and theta_k; empty where ``needs`` is False.

    With ``shared``, keys have the angles of the queries.
    """
    grid: tuple = tuple(hw_shape)
    options = Options(feature_map, rank_augmented, variance_aware, lam, alpha_max, grid)
    statistics = Statistics(state, log_sum, mean_query, mirror)
    gradients = passes.backward(grad_out, q, k, v, statistics, needs, options, shared=shared)
    filled = tuple(q.new_empty(0) if x is None else x for x in gradients)
    return filled  # type: ignore[return-value]


@mirror_attention_backward_op.register_fake
def _(grad_out, q, k, v, state, log_sum, mean_query, mirror, needs, shared, *options):
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
    q, k, v, theta, theta_k, *options = inputs
    ctx.save_for_backward(q, k, v, theta, theta_k, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = options


def _backward(ctx, grad_out, *_):
    nothing = (None,) * len(ctx.options)
    if grad_out is None:
        return *(None,) * 5, *nothing
    saved = ctx.saved_tensors  # checkpointing hands them out once
    inputs, statistics = saved[:5], saved[5:]
    needs = list(ctx.needs_input_grad[:5])
    try:
        gradients = _gradients(grad_out, inputs, statistics, needs, ctx.options)
    except OutOfResources as error:
        options = Options(*ctx.options)
        _remember_too_large(inputs, options, error)
        gradients = _reference_gradients(grad_out, inputs, needs, options)
    return *gradients, *nothing


def _gradients(
    grad_out: Tensor,
    inputs: Sequence[Tensor | None],
    statistics: Sequence[Tensor],
    needs: Sequence[bool],
    options: Sequence,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, theta and theta_k by the kernels, None where not needed."""
    shared = inputs[4] is None
    found = mirror_attention_backward_op(
        grad_out, *inputs[:3], *statistics, needs, shared, *options
    )
    return tuple(
        x.to(of.dtype) if need and of is not None else None
        for x, need, of in zip(found, needs, inputs)
    )


def _reference_gradients(
    grad_out: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool], options: Options
) -> tuple[Tensor | None, ...]:
    """:func:`_gradients`, by the reference, and like them without derivatives of their own."""
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(ONCE_ONLY)
    leaves = [
        None if x is None else x.detach().requires_grad_(need) for x, need in zip(inputs, needs)
    ]
    with torch.enable_grad():
        out = _reference(leaves, options)
    wanted = [x for x, need in zip(leaves, needs) if need and x is not None]
    found = iter(torch.autograd.grad(out, wanted, grad_out))
    return tuple(next(found) if need else None for need in needs)


mirror_attention_op.register_autograd(_backward, setup_context=_setup_context)


def _refuse(ctx, *_):
    raise RuntimeError(ONCE_ONLY)


mirror_attention_backward_op.register_autograd(
    _refuse, setup_context=lambda ctx, inputs, output: None
)


_too_large: set[tuple] = set()


def _size(inputs: Sequence[Tensor | None], options: Options) -> tuple:
    """What decides on the shared memory that a kernel takes."""
    q, k, v = inputs[:3]
    assert q is not None and k is not None and v is not None
    return q.device, q.dtype, k.dtype, v.dtype, q.shape[-1], *options[:3], bool(options.hw_shape)


def _remember_too_large(
    inputs: Sequence[Tensor | None], options: Options, error: OutOfResources
) -> None:
    _too_large.add(_size(inputs, options))
    q = inputs[0]
    assert q is not None
    warnings.warn(
        f'The fused mirror attention with {q.shape[-1]} channels per head in {q.dtype} does not '
        f'fit on {q.device} ({error}); the reference runs instead, slower and with more memory. '
        'float16 or bfloat16 (autocast) would fit.',
        RuntimeWarning,
        stacklevel=2,
    )


def _reference(inputs: Sequence[Tensor | None], options: Options) -> Tensor:
    q, k, v, theta, theta_k = inputs
    fields = options._asdict() | {'hw_shape': options.hw_shape or None}
    return mirror_attention_reference(q, k, v, theta, theta_k=theta_k, **fields)  # type: ignore[arg-type]


def mirror_attention_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options,
) -> Tensor:
    """:func:`~mirrorla_mm.ops.mirror_attention` by the fused kernels.

    Where the GPU has too little shared memory for one of them, the reference runs, after a warning;
    gradients of gradients are refused then, too. Under ``torch.compile`` and ``torch.export`` there
    is no such way out: the graph holds the operator, which raises triton's ``OutOfResources``.
    """
    if not options.mirrors:
        theta = theta_k = None
    *flags, hw_shape = options
    inputs = (q, k, v, theta, theta_k)
    if torch.compiler.is_compiling():  # the graph holds the operator, whatever the GPU
        return mirror_attention_op(*inputs, *flags, hw_shape or ())[0]
    if _size(inputs, options) in _too_large:
        return _reference(inputs, options)
    try:
        return mirror_attention_op(*inputs, *flags, hw_shape or ())[0]
    except OutOfResources as error:
        _remember_too_large(inputs, options, error)
        return _reference(inputs, options)
