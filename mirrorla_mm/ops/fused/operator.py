"""Registration with torch: what autograd, ``torch.compile`` and ``torch.export`` see.

Two operators, opaque to the compilers: the forward, whose further outputs are statistics for the
backward, and the backward, which has no derivative of its own. Two entries use them: one takes q, k
and v, the other a projection that holds them side by side, and its gradient is one tensor, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

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
Gradients = tuple[Tensor | None, ...]


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
    options = _restored(feature_map, rank_augmented, variance_aware, lam, alpha_max, hw_shape)
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
    out: Tensor | None,
    state: Tensor,
    log_sum: Tensor,
    mean_query: Tensor,
    mirror: Tensor,
    v_more: Tensor | None,
    gate_grad: Tensor | None,
    parts: int,
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

    ``out`` is the output in float16, else None. With ``shared``, keys have the angles of the
    queries. With ``parts``, q, k and v are the first of so many parts of a projection (B, N, parts,
    H, d): its gradient stands in q's place, and those in k's and v's are empty. Then ``v_more`` (B,
    H, N, d) is added to v's, and ``gate_grad`` (B, N, H, d) is that of the fourth part.
    """
    options = _restored(feature_map, rank_augmented, variance_aware, lam, alpha_max, hw_shape)
    statistics = Statistics(state, log_sum, mean_query, mirror)
    results = gradients = _new_gradients(q, k, v, parts, needs)
    packed = gradients[0]
    if parts and packed is not None:
        gradients = [*split_heads(packed)]
        if parts == 4:
            gate = packed[:, :, 3]
            gate.zero_() if gate_grad is None else gate.copy_(gate_grad)
    if v_more is not None and v_more.stride(-1) != 1:
        v_more = v_more.contiguous()  # no other tensor would be read in wide loads beside it
    angles = passes.backward(
        grad_out, q, k, v, statistics, gradients, options,
        needs_angles=needs[3:], shared=shared, out=out, v_more=v_more,
    )  # fmt: skip
    return _filled(q, (*results, *angles))


@mirror_attention_backward_op.register_fake
def _(
    grad_out, q, k, v, out, state, log_sum, mean_query, mirror, v_more, gate_grad, parts, needs, *_
):
    angle = q.new_empty(q.shape[1], q.shape[3] // 2, dtype=torch.float32)
    angles = (angle if need else None for need in needs[3:])
    return _filled(q, (*_new_gradients(q, k, v, parts, needs), *angles))


def _restored(*options: Any) -> Options:
    """Options from the form of :func:`_flat`, as a record that can be hashed."""
    return Options(*options)._replace(hw_shape=tuple(options[-1]))


def _flat(options: Options) -> tuple:
    """Options as an operator's schema can hold them."""
    *flags, hw_shape = options
    return *flags, hw_shape or ()


def _new_gradients(
    q: Tensor, k: Tensor, v: Tensor, parts: int, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Room for the gradients of q, k and v, or for one of all ``parts``; None where not needed."""
    if not parts:
        return [passes.empty_out(x) if need else None for x, need in zip((q, k, v), needs)]
    batch, heads, tokens, channels = q.shape
    return [q.new_empty(batch, tokens, parts, heads, channels) if needs[0] else None, None, None]


def _filled(q: Tensor, gradients: Sequence[Tensor | None]) -> Any:
    """Operators return no None."""
    return tuple(q.new_empty(0) if x is None else x for x in gradients)


def split_heads(packed: Tensor) -> list[Tensor]:
    """q, k and v (B, H, N, d), views of a projection (B, N, 3 or more, H, d)."""
    return [packed[:, :, part].transpose(1, 2) for part in range(3)]


def _kept(out: Tensor) -> Tensor | None:
    """The output, where the backward pass looks at it: float16 may have saturated."""
    return out if out.dtype == torch.float16 else None


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, theta, theta_k, *options = inputs
    out, *statistics = output
    ctx.save_for_backward(q, k, v, theta, theta_k, _kept(out), *statistics)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)
    ctx.options = options


def _backward(ctx, grad_out, *_):
    nothing = (None,) * len(ctx.options)
    if grad_out is None:
        return *(None,) * 5, *nothing
    saved = ctx.saved_tensors  # checkpointing hands them out once
    needs = ctx.needs_input_grad[:5]
    return *_gradients(grad_out, saved[:5], saved[5:], needs, _restored(*ctx.options)), *nothing


mirror_attention_op.register_autograd(_backward, setup_context=_setup_context)


def _refuse(ctx, *_):
    raise RuntimeError(ONCE_ONLY)


mirror_attention_backward_op.register_autograd(
    _refuse, setup_context=lambda ctx, inputs, output: None
)


class _Packed(torch.autograd.Function):
    """:func:`mirror_attention_packed` where the kernels fit.

    v and the gate go through it unchanged, so that what their further uses make of their gradients
    comes back to it, and it alone writes the projection's.
    """

    @staticmethod
    def forward(ctx, packed, theta, theta_k, options):
        out, *statistics = mirror_attention_op(
            *split_heads(packed), theta, theta_k, *_flat(options)
        )
        ctx.save_for_backward(packed, theta, theta_k, _kept(out), *statistics)
        ctx.set_materialize_grads(False)
        ctx.options = options
        return out, *_after_keys(packed)

    @staticmethod
    def backward(ctx, grad_out, v_more, gate_grad=None):
        packed, theta, theta_k, *saved = ctx.saved_tensors
        inputs = (*split_heads(packed), theta, theta_k)
        parts, *heads = packed.shape[2:]
        if grad_out is None:  # only v or the gate was used
            grad_out = torch.zeros_like(inputs[0])
        if v_more is not None:
            v_more = v_more.unflatten(-1, heads).transpose(1, 2)
        if gate_grad is not None:
            gate_grad = gate_grad.unflatten(-1, heads)
        need_packed, *need_angles, _ = ctx.needs_input_grad
        needs = (*[need_packed] * 3, *need_angles)
        more = (v_more, gate_grad, parts)
        gradient, _, _, *angles = _gradients(grad_out, inputs, saved, needs, ctx.options, *more)
        return gradient, *angles, None


def _after_keys(packed: Tensor) -> list[Tensor]:
    """v and, where there is one, the gate: views (B, N, C) of a projection (B, N, parts, H, d)."""
    return [packed[:, :, part].flatten(2) for part in range(2, packed.shape[2])]


def _gradients(
    grad_out: Tensor,
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor | None],
    needs: Sequence[bool],
    options: Options,
    v_more: Tensor | None = None,
    gate_grad: Tensor | None = None,
    parts: int = 0,
) -> Gradients:
    """Gradients of q, k, v, theta and theta_k, by the kernels where they fit; see the operator."""
    more = (v_more, gate_grad, parts)
    shared = inputs[4] is None
    try:
        found = mirror_attention_backward_op(
            grad_out, *inputs[:3], *saved, *more, list(needs), shared, *_flat(options)
        )
    except OutOfResources as error:
        _remember_too_large(inputs, options, error)
        found = _reference_gradients(grad_out, inputs, needs, options)
        if parts and needs[0]:
            found = (_join(found, v_more, gate_grad, parts), None, None, *found[3:])
    return tuple(
        x.to(of.dtype) if need and x is not None and of is not None else None
        for x, need, of in zip(found, needs, inputs)
    )


def _join(
    gradients: Gradients, v_more: Tensor | None, gate_grad: Tensor | None, parts: int
) -> Tensor:
    """The gradient (B, N, parts, H, d) of a projection from those of q, k, v and the rest."""
    joined = [x.transpose(1, 2) for x in gradients[:3] if x is not None]
    if v_more is not None:
        joined[2] = joined[2] + v_more.transpose(1, 2)
    if parts == 4:
        joined.append(torch.zeros_like(joined[0]) if gate_grad is None else gate_grad)
    return torch.stack(joined, 2)


def _reference_gradients(
    grad_out: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool], options: Options
) -> Gradients:
    """Those of the kernels, by the reference, and like them without derivatives of their own."""
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


_too_large: set[tuple] = set()


def _size(inputs: Sequence[Tensor | None], options: Options) -> tuple:
    """Properties of a call that decide how much shared memory a kernel takes."""
    q, k, v = inputs[:3]
    assert q is not None and k is not None and v is not None
    return q.device, q.dtype, k.dtype, v.dtype, q.shape[-1], *options[:3], bool(options.hw_shape)


def _remember_too_large(
    inputs: Sequence[Tensor | None], options: Options, error: OutOfResources
) -> None:
    q = inputs[0]
    assert q is not None
    warnings.warn(
        f'The fused mirror attention with {q.shape[-1]} channels per head in {q.dtype} does not '
        f'fit on {q.device} ({error}); the reference runs instead, slower and with more memory. '
        'float16 or bfloat16 (autocast) would fit.',
        RuntimeWarning,
        stacklevel=2,
    )
    _too_large.add(_size(inputs, options))  # not where the warning is an error, which comes again


def _reference(inputs: Sequence[Tensor | None], options: Options) -> Tensor:
    q, k, v, theta, theta_k = inputs
    fields = options._asdict() | {'hw_shape': options.hw_shape or None}
    return mirror_attention_reference(q, k, v, theta, theta_k=theta_k, **fields)  # type: ignore[arg-type]


def _where_it_fits(
    kernels: Callable[[], Any],
    reference: Callable[[], Any],
    inputs: Sequence[Tensor | None],
    options: Options,
) -> Any:
    """Run the kernels; where the GPU has too little shared memory, warn once and run the reference.

    Under ``torch.compile`` and ``torch.export`` there is no such way out: the graph holds the
    operator, which would raise triton's ``OutOfResources``.
    """
    if torch.compiler.is_compiling():  # the graph holds the operator, whatever the GPU
        return kernels()
    if _size(inputs, options) in _too_large:
        return reference()
    try:
        return kernels()
    except OutOfResources as error:
        _remember_too_large(inputs, options, error)
        return reference()


def mirror_attention_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    theta_k: Tensor | None,
    options: Options,
) -> Tensor:
    """:func:`~mirrorla_mm.ops.mirror_attention` by the fused kernels.

    Where the reference runs instead of a kernel that does not fit, after a warning, gradients of
    gradients are refused, too.
    """
    if not options.mirrors:
        theta = theta_k = None
    inputs = (q, k, v, theta, theta_k)
    return _where_it_fits(
        lambda: mirror_attention_op(*inputs, *_flat(options))[0],
        lambda: _reference(inputs, options),
        inputs,
        options,
    )


def mirror_attention_packed(
    packed: Tensor, theta: Tensor | None, theta_k: Tensor | None, options: Options
) -> tuple[Tensor, ...]:
    """:func:`mirror_attention_fused` of a whole projection, whose gradient is one tensor as well.

    Gradients of q, k and v are written where they belong in it, and what the further uses of v and
    of the gate give is added on the way: autograd would add two tensors and copy four together.

    Args:
        packed (Tensor): q, k, v and maybe a gate, shape (B, N, 3 or 4, H, d).
        theta (Tensor, optional): See :func:`~mirrorla_mm.ops.mirror_attention`.
        theta_k (Tensor, optional): Likewise.
        options (Options): What to compute.

    Returns:
        tuple[Tensor, ...]: The output (B, H, N, d), then v and the gate as views (B, N, C), to be
        used instead of those of ``packed``.
    """
    if not options.mirrors:
        theta = theta_k = None
    inputs = (packed, packed, packed, theta, theta_k)  # what matters is their dtype and d
    return _where_it_fits(
        lambda: _Packed.apply(packed, theta, theta_k, options),
        lambda: (
            _reference((*split_heads(packed), theta, theta_k), options),
            *_after_keys(packed),
        ),
        inputs,
        options,
    )
