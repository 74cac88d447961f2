"""The order of the kernels: what a forward and a backward launch, and the numbers between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..options import Options
from .backward import key_backward_kernel, query_backward_kernel
from .forward import (
    mean_query_kernel,
    merge_state_kernel,
    mirror_kernel,
    moments_kernel,
    output_kernel,
    rope_table_kernel,
    state_kernel,
)
from .tuning import (
    INTERPRETED,
    MANY_PROGRAMS,
    Split,
    few_programs,
    launch,
    layout,
    regime,
    split_tokens,
)

SPLITS_AT_ONCE = 16


class Statistics(NamedTuple):
    """What the backward pass keeps beside the inputs: nothing as long as N.

    Attributes:
        state (Tensor): ``S`` in the first d rows, ``m`` in the last, shape (B, H, d + 1, d).
        log_sum (Tensor): log2 of the softmax's denominator, shape (B, H).
        mean_query (Tensor): The means of :func:`~.forward.mean_query_kernel`, ``qbar`` first, shape
            (B, H, 2, d); empty without rank augmentation.
        mirror (Tensor): ``cos 2Theta``, ``sin 2Theta``, ``dTheta/dvariance`` and the tokens' mean
            (two rows) of q and of k, shape (2, B, H, 5, d/2); empty without reflection.
    """

    state: Tensor
    log_sum: Tensor
    mean_query: Tensor
    mirror: Tensor


def empty_out(x: Tensor) -> Tensor:
    """Room for a tensor like ``x``: channels first where ``x`` is, else heads beside channels."""
    batch, heads, tokens, channels = x.shape
    if x.stride(2) == 1 and x.stride(3) != 1:
        return x.new_empty(batch, heads, channels, tokens).transpose(2, 3)
    return x.new_empty(batch, tokens, heads, channels).transpose(1, 2)


def empty_statistics(q: Tensor, options: Options) -> Statistics:
    """Uninitialised statistics for ``q`` (B, H, N, d)."""
    batch, heads, _, channels = q.shape

    def new(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=torch.float32)

    return Statistics(
        state=new(batch, heads, channels + 1, channels),
        log_sum=new(batch, heads),
        mean_query=new(batch, heads, 2, channels) if options.rank_augmented else new(0),
        mirror=new(2, batch, heads, 5, channels // 2) if options.mirrors else new(0),
    )


class _Plan:
    """Grid and arguments that the kernels of one call share."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, options: Options) -> None:
        batch, self.heads, self.tokens, self.channels = q.shape
        self.rows = batch * self.heads
        self.block = max(16, triton.next_power_of_2(self.channels))
        self.few, self.many = (
            split_tokens(self.tokens, self.rows, q.device, programs)
            for programs in (few_programs(self.block), MANY_PROGRAMS)
        )
        self.options = options
        self.layout = layout(q, k, v)
        self.widths = dict(HEAD_DIM=self.channels, BLOCK_D=self.block)
        self.feature = dict(FEATURE_MAP=options.feature_map, **self.widths)
        self.score_scale = self.channels**-0.5 * math.log2(math.e)
        height, width = options.hw_shape or (1, self.tokens)
        rope = bool(options.hw_shape)
        self.attention = dict(
            height=height,
            width=width,
            table=self._rope_table(q, height, width) if rope else None,
            ROPE=rope,
            PRECISION=precision(q, k, v),
            **self.feature,
        )

    @property
    def one_at_a_time(self) -> bool:
        """Whether two products with the same matrix, as it is and transposed, are too large.

        Both copies of 128 x 128 float32 numbers would have to be in shared memory at once.
        """
        return self.block == 128 and self.attention['PRECISION'] != 'bf16'

    def grid(self, split: Split) -> tuple[int, int]:
        """A program for every head and split."""
        return self.rows, split.count

    def sizes(self, split: Split) -> dict[str, int]:
        """What every kernel over the tokens takes of the plan."""
        return dict(
            tokens=self.tokens,
            heads=self.heads,
            chunk=split.chunk,
            regime=regime(split.chunk, self.layout),
        )

    def sums(self, x: Tensor, split: Split, *size: int, leading: Sequence[int] = ()) -> Tensor:
        """Room for what every head and split sums, in float32."""
        return x.new_empty(*leading, self.rows, split.count, *size, dtype=torch.float32)

    def _rope_table(self, q: Tensor, height: int, width: int) -> Tensor:
        quarter = self.channels // 4
        table = q.new_empty(2, height + width, quarter, dtype=torch.float32)
        grid = (triton.cdiv((height + width) * quarter, 256),)
        launch(
            rope_table_kernel,
            grid,
            table=table,
            height=height,
            width=width,
            QUARTER=quarter,
            BLOCK=256,
        )
        return table


def precision(*tensors: Tensor) -> str:
    """How products are taken, see :func:`~.tiles.dot`.

    - ``'bf16'`` for bfloat16 alone (the interpreter has no such product).
    - ``'tf32'`` for float16: it holds every float16 number exactly and, unlike float16, the
      products with normalisers and loss scales as well. For float32 too where torch's products
      use it.
    - ``'tf32x3'`` for float32 else. Splitting each operand into a high and a low TF32 part keeps
      float32's precision on the tensor cores; products in float32 proper would spill thousands of
      bytes a thread.
    """
    if all(x.dtype == torch.bfloat16 for x in tensors) and not INTERPRETED:
        return 'bf16'
    if all(x.dtype != torch.float32 for x in tensors):
        return 'tf32'
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # reading allow_tf32 may raise where this was set
        return 'tf32' if matmul.fp32_precision == 'tf32' else 'tf32x3'
    return 'tf32' if matmul.allow_tf32 else 'tf32x3'


def _mirror(
    plan: _Plan, q: Tensor, k: Tensor, theta: Tensor, theta_k: Tensor | None, mirror: Tensor
) -> None:
    """Pass 1: variances of q and k, from them the angles."""
    options = plan.options
    partial = None
    if options.variance_aware:
        partial = plan.sums(q, plan.many, 2, plan.channels, leading=(2,))
        launch(
            moments_kernel,
            (*plan.grid(plan.many), 2),
            q=q,
            q_strides=q.stride(),
            k=k,
            k_strides=k.stride(),
            partial=partial,
            **plan.sizes(plan.many),
            **plan.widths,
        )
    theta = theta.contiguous()
    launch(
        mirror_kernel,
        (plan.rows, 2),
        partial=partial,
        theta_q=theta,
        theta_k=theta if theta_k is None else theta_k.contiguous(),
        mirror=mirror,
        splits=plan.many.count,
        lam=float(options.lam),
        alpha_max=float(options.alpha_max),
        VARIANCE_AWARE=options.variance_aware,
        tokens=plan.tokens,
        heads=plan.heads,
        chunk=plan.many.chunk,
        BLOCK_S=SPLITS_AT_ONCE,
        **plan.widths,
    )


def _mean_query(plan: _Plan, q: Tensor, mirror: Tensor | None, mean_query: Tensor) -> None:
    """Pass 2: mean of phi(q)."""
    partial = plan.sums(q, plan.many, 2, plan.channels)
    launch(
        mean_query_kernel,
        plan.grid(plan.many),
        q=q,
        q_strides=q.stride(),
        mirror=mirror,
        partial=partial,
        **plan.sizes(plan.many),
        **plan.feature,
    )
    torch.sum(partial.unflatten(0, mean_query.shape[:2]), 2, out=mean_query)


def _state(
    plan: _Plan, k: Tensor, v: Tensor, mirror: Tensor | None, statistics: Statistics
) -> None:
    """Pass 3: S and m."""
    size = plan.channels * (plan.channels + 1)
    partial, scale = plan.sums(k, plan.few, size), plan.sums(k, plan.few, 2)
    launch(
        state_kernel,
        plan.grid(plan.few),
        k=k,
        k_strides=k.stride(),
        v=v,
        v_strides=v.stride(),
        mirror=mirror,
        mean_query=statistics.mean_query,
        partial=partial,
        scale=scale,
        score_scale=plan.score_scale,
        RANK_AUGMENTED=plan.options.rank_augmented,
        **plan.sizes(plan.few),
        **plan.attention,
    )
    launch(
        merge_state_kernel,
        (plan.rows, triton.cdiv(size, 256)),
        partial=partial,
        scale=scale,
        state=statistics.state,
        log_sum=statistics.log_sum,
        splits=plan.few.count,
        SIZE=size,
        BLOCK_S=SPLITS_AT_ONCE,
        BLOCK=256,
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor | None, theta_k: Tensor | None, options: Options
) -> tuple[Tensor, Statistics]:
    """The output, shape (B, H, N, d), and the statistics for :func:`backward`."""
    out, statistics = empty_out(v), empty_statistics(q, options)
    if not out.numel():
        return out, statistics
    plan = _Plan(q, k, v, options)
    mirror_q = mirror_k = None
    if options.mirrors:
        assert theta is not None  # the operator has refused it
        _mirror(plan, q, k, theta, theta_k, statistics.mirror)
        mirror_q, mirror_k = statistics.mirror
    if options.rank_augmented:
        _mean_query(plan, q, mirror_q, statistics.mean_query)
    _state(plan, k, v, mirror_k, statistics)
    launch(
        output_kernel,
        plan.grid(plan.few),
        q=q,
        q_strides=q.stride(),
        mirror=mirror_q,
        state=statistics.state,
        out=out,
        out_strides=out.stride(),
        **plan.sizes(plan.few),
        **plan.attention,
    )
    return out, statistics


class Gradients(NamedTuple):
    """Gradients of the inputs, None where not asked for; those of the angles are float32."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    theta: Tensor | None
    theta_k: Tensor | None


class _Backward:
    """One backward call: a pass over the queries, one over the keys, and more where needed.

    A gradient is written in the pass that reduces where it needs no sum over all tokens, else in a
    second pass.
    """

    def __init__(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        statistics: Statistics,
        options: Options,
    ):
        self.grad_out, self.q, self.k, self.v = grad_out, q, k, v
        self.statistics = statistics
        self.plan = _Plan(q, k, v, options)
        self.mirror_q: Tensor | None = None
        self.mirror_k: Tensor | None = None
        if options.mirrors:
            self.mirror_q, self.mirror_k = statistics.mirror
        self.flags = dict(
            RANK_AUGMENTED=options.rank_augmented, VARIANCE_AWARE=options.reflects_by_variance
        )

    def query_pass(
        self,
        partial: Tensor | None = None,
        q_grad: Tensor | None = None,
        mean_query_grad: Tensor | None = None,
        angle_grad: Tensor | None = None,
    ) -> None:
        """Reduce if there is a ``partial`` to reduce to, write if there is a ``q_grad``."""
        launch(
            query_backward_kernel,
            self.plan.grid(self.plan.few),
            q=self.q,
            q_strides=self.q.stride(),
            grad_out=self.grad_out,
            grad_out_strides=self.grad_out.stride(),
            mirror=self.mirror_q,
            state=self.statistics.state,
            mean_query_grad=mean_query_grad,
            angle_grad=angle_grad,
            partial=partial,
            q_grad=q_grad,
            q_grad_strides=_strides(q_grad),
            REDUCE=partial is not None,
            WRITE=q_grad is not None,
            **self.flags,
            **self.plan.sizes(self.plan.few),
            **self.plan.attention,
        )

    def key_pass(
        self,
        state_grad: Tensor,
        partial: Tensor | None = None,
        k_grad: Tensor | None = None,
        v_grad: Tensor | None = None,
        angle_grad: Tensor | None = None,
    ) -> None:
        """Reduce if there is a ``partial`` to reduce to, write what there is room for."""
        launch(
            key_backward_kernel,
            self.plan.grid(self.plan.few),
            k=self.k,
            k_strides=self.k.stride(),
            v=self.v,
            v_strides=self.v.stride(),
            mirror=self.mirror_k,
            state=self.statistics.state,
            state_grad=state_grad,
            mean_query=self.statistics.mean_query,
            log_sum=self.statistics.log_sum,
            angle_grad=angle_grad,
            partial=partial,
            k_grad=k_grad,
            k_grad_strides=_strides(k_grad),
            v_grad=v_grad,
            v_grad_strides=_strides(v_grad),
            score_scale=self.plan.score_scale,
            REDUCE=partial is not None,
            WRITE_K=k_grad is not None,
            WRITE_V=v_grad is not None,
            **self.flags,
            **self.plan.sizes(self.plan.few),
            **self.plan.attention,
        )


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if x is None else x.stride()


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    statistics: Statistics,
    needs: Gradients | Sequence[bool],
    options: Options,
) -> Gradients:
    """Gradients of those inputs that ``needs`` (q, k, v, theta, theta_k) marks.

    ``theta``'s is that of the queries alone; where keys share it, the caller adds ``theta_k``'s.
    """
    need_q, need_k, need_v, need_theta, need_theta_k = needs
    q_grad, k_grad, v_grad = (
        empty_out(x) if need else None for x, need in ((q, need_q), (k, need_k), (v, need_v))
    )
    heads, channels = q.shape[1], q.shape[3]
    if not q.numel():
        angle_grads = (
            q.new_zeros(heads, channels // 2, dtype=torch.float32) if need else None
            for need in (need_theta, need_theta_k)
        )
        return Gradients(q_grad, k_grad, v_grad, *angle_grads)
    call = _Backward(grad_out, q, k, v, statistics, options)
    plan = call.plan
    mirrors, by_variance = options.mirrors, options.reflects_by_variance
    through_mean = options.rank_augmented and (need_q or need_theta)
    q_at_once = not (options.rank_augmented or by_variance)
    k_at_once = not by_variance

    partial = plan.sums(q, plan.few, channels * (channels + 1) + channels // 2)
    call.query_pass(partial, q_grad if q_at_once else None)
    query_sums = partial.sum(1)

    partial = plan.sums(q, plan.few, 3 * channels // 2)
    reduces = through_mean or (mirrors and (need_theta_k or (need_k and by_variance)))
    key_now = k_grad if k_at_once else None
    first = partial if reduces else None
    if plan.one_at_a_time and reduces and v_grad is not None:
        call.key_pass(query_sums, None, None, v_grad)
        call.key_pass(query_sums, first, key_now)
    elif reduces or key_now is not None or v_grad is not None:
        call.key_pass(query_sums, first, key_now, v_grad)
    mean_query_grad, angle_grad_k = (
        x.contiguous() for x in partial.sum(1).split((channels, channels // 2), 1)
    )
    if k_grad is not None and not k_at_once:
        call.key_pass(query_sums, None, k_grad, None, angle_grad_k)

    angle_grad_q = None
    if mirrors and (need_q or need_theta):
        angle_grad_q = query_sums[:, channels * (channels + 1) :].contiguous()
        if options.rank_augmented:
            crossed = statistics.mean_query[:, :, 1].flatten(0, 1).unflatten(1, (-1, 2))
            turned = mean_query_grad.unflatten(1, (-1, 2)).flip(2) * crossed
            angle_grad_q += 2 * (turned[..., 0] - turned[..., 1])
    if q_grad is not None and not q_at_once:
        call.query_pass(None, q_grad, mean_query_grad, angle_grad_q)

    def of_theta(angle_grad: Tensor | None, need: object) -> Tensor | None:
        if angle_grad is None or not (need and mirrors):
            return None
        return angle_grad.unflatten(0, (-1, heads)).sum(0)

    return Gradients(
        q_grad,
        k_grad,
        v_grad,
        of_theta(angle_grad_q, need_theta),
        of_theta(angle_grad_k, need_theta_k),
    )
