"""The order of the kernels: what a forward and a backward launch, and the numbers between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..backend import capturing
from ..options import Options
from ..rope import rope_frequencies
from .backward import key_backward_kernel, query_backward_kernel
from .forward import angle_kernel, mean_query_kernel, output_kernel, state_kernel
from .launching import LARGEST_BLOCK, Step, multiprocessors, run, split_tokens
from .tuning import INTERPRETED, layout, regime

# Programs on a multiprocessor: of those that only read and add, and of those that take products.
MANY_PROGRAMS, SOME_PROGRAMS = 8, 4
SMALLEST_FOR_A_MATRIX = 256  # tokens
SMALLEST_GROUP = 16  # splits that one program merges
SMALLEST_TABLE = 256  # rows or columns


class Statistics(NamedTuple):
    """Numbers that the backward pass keeps beside the inputs: nothing as long as N.

    Attributes:
        state (Tensor): ``S`` in the first d rows, ``m`` in the last, shape (B, H, d + 1, d).
        log_sum (Tensor): log2 of the softmax's denominator, shape (B, H).
        mean_query (Tensor): The means of :func:`~.forward.mean_query_kernel`, ``qbar`` first, shape
            (B, H, 2, d); empty without rank augmentation.
        mirror (Tensor): The mirrors of q and of k, see :func:`~.tiles.mirror_row`, shape (2, B, H,
            3 (d // 2) + d); empty without reflection.
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
        mirror=new(2, batch, heads, channels // 2 * 3 + channels) if options.mirrors else new(0),
    )


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


def make_rope_table(
    positions: int, channels: int, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """cos and sin of every row or column from 0, shape (2, positions, d/4).

    In float64: the angles reach hundreds of radians, where a float32 product is off by 1e-5.
    """
    frequency = rope_frequencies(channels, device=device, dtype=torch.float64)
    angle = torch.arange(positions, device=device, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin())).to(dtype)


def _rope_table_to_keep(
    positions: int, channels: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    def make() -> Tensor:
        return make_rope_table(positions, channels, dtype, 'cpu').to(device)

    # In a thread of its own: before torch.compile captures a CUDA graph, all that the calling
    # thread allocates comes from the graph's memory, where nothing may be kept. Nor does the new
    # thread know of the caller's inference mode, whose tensors no later training could save.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(make).result()


_rope_tables: dict[tuple, Tensor] = {}


def rope_table(positions: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """:func:`make_rope_table`, kept from call to call.

    One table serves every grid that it is long enough for; as lengths are powers of two, all of
    them together are small, and none is ever dropped. It comes from the CPU by a copy that has
    ended when this returns, so any stream may read it, and any graph in all its replays. A copy
    that the host waits for cannot be captured: a graph without such a table makes its own.
    """
    key = positions, channels, dtype, device
    kept = _rope_tables.get(key)
    if kept is not None:
        return kept
    if capturing(device):
        return make_rope_table(*key)
    return _rope_tables.setdefault(key, _rope_table_to_keep(*key))


class Split(NamedTuple):
    """How the tokens of a row are dealt out to programs.

    Attributes:
        chunk (int): Tokens of a split.
        count (int): Splits.
        group (int): Splits whose sums are merged first.
    """

    chunk: int
    count: int  # type: ignore[assignment]  # tuple has a method of that name
    group: int


class Plan:
    """The launches of one kind of call, and the memory they share.

    Args:
        shape (torch.Size): (B, H, N, d).
        device (torch.device): Where they run.
        options (Options): What to compute.
        layouts (dict): Strides and dtypes of the tensors that are as long as N, by name.
        precision (str): See :func:`precision`.
        aligned (tuple): Name and dtype of each tensor, and whether it begins at a multiple of 16
            bytes.
    """

    def __init__(
        self,
        shape: torch.Size,
        device: torch.device,
        options: Options,
        layouts: dict[str, tuple],
        precision: str,
        aligned: tuple,
    ) -> None:
        batch, self.heads, self.tokens, self.channels = shape
        self.rows = batch * self.heads
        self.device, self.options = device, options
        self.block = max(16, triton.next_power_of_2(self.channels))
        self.steps: list[Step] = []
        self.counters = self.numbers = 0
        self.positions = 0
        self.table_dtype = torch.float32
        height, width = options.hw_shape or (0, 0)
        if options.hw_shape:
            self.positions = max(SMALLEST_TABLE, triton.next_power_of_2(max(height, width)))
        strides = {name: strides for name, (strides, _) in layouts.items()}
        self.layout = layout(*strides.values())
        self.aligned = all(begins for _, _, begins in aligned)
        self.constants: dict[str, Any] = {
            **{f'{name}_strides': x for name, x in strides.items()},
            'tokens': self.tokens,
            'heads': self.heads,
            'width': width,
            'positions': self.positions,
            'lam': float(options.lam),
            'alpha_max': float(options.alpha_max),
            'score_scale': self.channels**-0.5 * math.log2(math.e),
            'RANK_AUGMENTED': options.rank_augmented,
            'VARIANCE_AWARE': options.reflects_by_variance,
            'ROPE': bool(options.hw_shape),
            'FEATURE_MAP': options.feature_map,
            'PRECISION': precision,
            'VECTOR': _common_divisor(strides.values()) if self.layout == 'channels' else 1,
            'HEAD_DIM': self.channels,
            'BLOCK_D': self.block,
        }

    def split(self, programs: int, overhead: int = 0, smallest: int = LARGEST_BLOCK) -> Split:
        """Deal out the tokens to so many programs a multiprocessor, see :func:`split_tokens`."""
        where = self.tokens, self.rows, self.device
        chunk, count = split_tokens(*where, programs, overhead, smallest)
        return Split(chunk, count, max(SMALLEST_GROUP, math.isqrt(count - 1) + 1))

    def add(
        self, kernel: Any, split: Split, sums: int = 0, copies: int = 1, **constants: Any
    ) -> None:
        """Launch a kernel after those before it.

        Args:
            kernel: A tuned kernel.
            split (Split): Its second grid dimension.
            sums (int): Numbers that it sums over the tokens.
            copies (int): Its third grid dimension.
            **constants: Further arguments.
        """
        row = triton.cdiv(sums, 4) * 4  # so that every row begins at a multiple of 16 bytes
        groups = triton.cdiv(split.count, split.group)
        heads = self.rows * copies
        full = heads * split.count >= multiprocessors(self.device)
        constants = {
            **self.constants,
            'chunk': split.chunk,
            'regime': regime(split.chunk, self.layout, self.aligned, full),
            'group': split.group,
            'first_counter': self.counters,
            'ROW': row,
            **constants,
        }
        if sums:
            self.counters += heads * (groups + 1)
            self.numbers = max(self.numbers, heads * (split.count + groups) * row)
        self.steps.append(Step(kernel, (self.rows, split.count, copies), constants))

    def run(self, tensors: dict[str, Tensor]) -> None:
        """Launch everything, with memory for counters, sums and the rotation added."""
        q = tensors['q']
        tensors['counters'] = q.new_zeros(self.counters, dtype=torch.int32)
        tensors['partial'] = q.new_empty(self.numbers, dtype=torch.float32)
        if self.positions:
            tensors['table'] = rope_table(
                self.positions, self.channels, self.table_dtype, self.device
            )
        run(self.steps, tensors, self.device)


def _common_divisor(strides: Any) -> int:
    """The largest power of two, up to 16, that divides all strides but that of the channels."""
    divisor = math.gcd(16, *(x for of_one in strides for x in of_one[:3]))
    return divisor


def _call(
    plan: Any, long_ones: Sequence[str], tensors: dict[str, Tensor], options: Options, *more: Any
) -> None:
    """Run the plan for tensors of these layouts; addresses matter to loads, too."""
    q, k, v = (tensors[name] for name in 'qkv')
    layouts = tuple((name, (tensors[name].stride(), tensors[name].dtype)) for name in long_ones)
    aligned = tuple((name, x.dtype, x.data_ptr() % 16 == 0) for name, x in tensors.items())
    found = plan(q.shape, q.device, options, layouts, precision(q, k, v), aligned, *more)
    found.run(tensors)


@lru_cache(maxsize=1024)
def _forward_plan(
    shape: torch.Size,
    device: torch.device,
    options: Options,
    layouts: tuple,
    precision: str,
    aligned: tuple,
) -> Plan:
    plan = Plan(shape, device, options, dict(layouts), precision, aligned)
    if all(dtype != torch.float32 for _, (_, dtype) in layouts):
        # The passes are bound by bytes: of the cache, too. Those of the backward pass are bound by
        # instructions, and would have to convert.
        plan.table_dtype = torch.float16
    channels, many = plan.channels, plan.split(MANY_PROGRAMS)
    if options.mirrors:
        if options.variance_aware:
            plan.add(angle_kernel, many, 2 * channels, copies=2)
        else:
            plan.add(angle_kernel, Split(plan.tokens, 1, 1), copies=2, q=None, k=None)
    if options.rank_augmented:
        plan.add(mean_query_kernel, many, 2 * channels)
    plan.add(state_kernel, _few(plan), channels * (channels + 1) + 2)
    plan.add(output_kernel, plan.split(SOME_PROGRAMS, plan.block // 2))
    return plan


def _few(plan: Plan) -> Split:
    """For passes of which each program leaves a (d, d) matrix: as many as keep those small.

    Two at least on a multiprocessor, to hide each other's waiting. To leave, read and merge a
    matrix moves the bytes of some 200 bfloat16 tokens (d = 64), so a program gets more than that.
    """
    return plan.split(max(2, 128 // plan.block), 2 * plan.block, smallest=SMALLEST_FOR_A_MATRIX)


def forward(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor | None, theta_k: Tensor | None, options: Options
) -> tuple[Tensor, Statistics]:
    """The output, shape (B, H, N, d), and the statistics for :func:`backward`."""
    out, statistics = empty_out(v), empty_statistics(q, options)
    if not out.numel():
        return out, statistics
    tensors = {'q': q, 'k': k, 'v': v, 'out': out, **statistics._asdict()}
    if theta is not None:
        tensors['theta'] = theta.float().contiguous()
        tensors['theta_k'] = tensors['theta'] if theta_k is None else theta_k.float().contiguous()
    _call(_forward_plan, ('q', 'k', 'v', 'out'), tensors, options)
    return out, statistics


@lru_cache(maxsize=1024)
def _backward_plan(
    shape: torch.Size,
    device: torch.device,
    options: Options,
    layouts: tuple,
    precision: str,
    aligned: tuple,
    needs: tuple[bool, ...],
) -> Plan:
    """A pass over the queries, one over the keys, and more where needed.

    A gradient is written in the pass that reduces where it needs no sum over all tokens, else in a
    second pass.
    """
    need_q, need_k, need_v, need_theta, need_theta_k = needs
    plan = Plan(shape, device, options, dict(layouts), precision, aligned)
    few, some = _few(plan), plan.split(SOME_PROGRAMS, plan.block // 2)
    channels, pairs = plan.channels, plan.channels // 2
    by_variance = options.reflects_by_variance
    q_at_once = need_q and not (options.rank_augmented or by_variance)
    k_at_once = need_k and not by_variance
    angle_of_k = options.mirrors and (need_theta_k or (need_k and by_variance))
    reduces = angle_of_k or (options.rank_augmented and (need_q or need_theta))

    def query_pass(split: Split, sums: int = 0, write: bool = False) -> None:
        unused: dict[str, Any] = {} if write else {'q_grad': None}
        plan.add(query_backward_kernel, split, sums, REDUCE=bool(sums), WRITE=write, **unused)

    def key_pass(split: Split, sums: int = 0, k: bool = False, v: bool = False) -> None:
        unused: dict[str, Any] = {} if k else {'k_grad': None}
        if not v:
            unused |= {'v_grad': None, 'v_more': None}
        flags = {'REDUCE': bool(sums), 'WRITE_K': k, 'WRITE_V': v}
        plan.add(key_backward_kernel, split, sums, **flags, **unused)

    query_pass(few, channels * (channels + 1) + pairs, q_at_once)
    sums = (channels + pairs) * reduces
    if need_v and (reduces or k_at_once) and _short_of_memory(channels, precision):
        key_pass(some, v=True)
        key_pass(some, sums, k_at_once)
    elif reduces or k_at_once or need_v:
        key_pass(some, sums, k_at_once, need_v)
    if need_k and not k_at_once:
        key_pass(some, k=True)
    if need_q and not q_at_once:
        query_pass(some, write=True)
    return plan


def _short_of_memory(channels: int, precision: str) -> bool:
    """Whether shared memory has no room for a float32 matrix of S's size and its transpose.

    Then v's gradient has a pass of its own, which has no room for a further tile either.
    """
    return channels > 64 and precision != 'bf16'


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    statistics: Statistics,
    gradients: Sequence[Tensor | None],
    options: Options,
    *,
    needs_angles: Sequence[bool],
    shared: bool = False,
    out: Tensor | None = None,
    v_more: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of theta and theta_k, shape (H, d // 2), float32, None where not needed.

    Args:
        grad_out (Tensor): Gradient of the output, shape (B, H, N, d).
        q (Tensor): As in :func:`forward`; k and v likewise.
        k (Tensor): Keys.
        v (Tensor): Values.
        statistics (Statistics): From :func:`forward`.
        gradients (Sequence[Tensor | None]): Where those of q, k and v are written, None where not
            needed.
        options (Options): What was computed.
        needs_angles (Sequence[bool]): Whether theta, and theta_k, need a gradient.
        shared (bool): Keys have the angles of the queries: ``theta``'s gradient is that of both.
        out (Tensor, optional): The output, needed where it is float16: where that has saturated it
            has no gradient.
        v_more (Tensor, optional): Added to the gradient of v, shape (B, H, N, d).
    """
    batch, heads, _, channels = q.shape
    later = None
    if v_more is not None and _short_of_memory(channels, precision(q, k, v)):
        v_more, later = None, v_more
    need_theta, need_theta_k = (need and options.mirrors for need in needs_angles)
    pairs = channels // 2

    def new(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=torch.float32)

    angle_grad = new(2, batch, heads, pairs)
    if q.numel():
        optional = zip(('q_grad', 'k_grad', 'v_grad', 'out', 'v_more'), (*gradients, out, v_more))
        tensors = {'q': q, 'k': k, 'v': v, 'grad_out': grad_out}
        tensors |= {name: x for name, x in optional if x is not None}
        long_ones = tuple(tensors)
        tensors |= statistics._asdict()
        tensors['state_grad'] = new(batch, heads, channels * (channels + 1) + pairs)
        tensors['mean_query_grad'] = new(batch, heads, channels + pairs)
        tensors['angle_grad'] = angle_grad
        needs = (x is not None for x in gradients)
        both = need_theta_k or (need_theta and shared)
        _call(_backward_plan, long_ones, tensors, options, (*needs, need_theta, both))
        if later is not None and gradients[2] is not None:
            gradients[2].add_(later)
    else:
        angle_grad.zero_()
    over = (0, 1) if shared else 0
    of_q = angle_grad if shared else angle_grad[0]
    return [
        of_q.sum(over) if need_theta else None,
        angle_grad[1].sum(0) if need_theta_k and not shared else None,
    ]
