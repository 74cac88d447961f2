"""Check, then time the fused mirror attention against what else there is, on a GPU.

    python tools/analysis_tools/benchmark_ops.py

Needs torch and triton alone (matplotlib for the plot; ``--models`` the OpenMMLab packages). The
fused operator's gradients are checked against the float64 reference at one size of each dtype and
head dimension, and every method's output at every size, on one head, before it is timed; what is
off, or falls back to another backend, gets no times. Each method is timed as
it is called (``eager``: calls one after the other, the time of the host included) and replayed from
a CUDA graph (``graph``: the GPU alone). The two entries, the mirror in the operator or folded into
the projection before it, are timed from the layer's input on, and the faster is named for every
size.

Writes a table, the bars that were set beforehand with what was measured beside each, JSON and a
plot into ``docs/benchmarks``. What fails is printed and noted, and the run goes on. The JSON is
written after every size, and a run that was cut short goes on from it with ``--resume``, on the
same device with the same versions: what has no times yet, what failed among it, is measured.
``--minutes`` ends it in time. Without a GPU, ``--toy`` goes through the whole program on tiny
tensors under triton's interpreter; its times mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
HEADS = 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
OF_PEERS = 4  # times as far off may be what rounds between its steps
CHECKED_QUERIES = 64  # of softmax attention, whose scores are as many as queries times keys
COMPILER = 'inductor'
SLOW_SDPA_TOKENS = 2**17
MIRRORLA, SWIN = 'MirrorLA-T, linear', 'Swin-T'
MODES = ('eager', 'graph')
IN_OPERATOR, IN_PROJECTION = 'layer, mirror in the operator', 'layer, mirror in the projection'


class Case(NamedTuple):
    """One size: q, k, v of shape (batch, HEADS, side^2, head_dim)."""

    batch: int
    side: int
    head_dim: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, HEADS, self.side**2, self.head_dim

    @property
    def compiles(self) -> bool:
        """Whether the compiled reference runs, for which every size takes a minute."""
        tokens = self.side**2
        return tokens < 2**10 or (tokens == 2**16 and self.dtype != torch.float32)

    @property
    def name(self) -> list:
        """How its rows begin."""
        return [self.side**2, self.batch, self.head_dim, str(self.dtype).removeprefix('torch.')]


class Method(NamedTuple):
    """Something to time, and what it has to give.

    Attributes:
        run: Takes q, k, v and theta, or what :func:`layer_inputs` makes.
        exact: The output of one head's first queries or more; takes q, k, v and theta in float64.
    """

    run: Callable[..., Tensor]
    exact: Callable[..., Tensor]


class Row(NamedTuple):
    """One measurement; speed and share of the copy bandwidth for the fused operator alone."""

    tokens: int
    batch: int
    head_dim: int
    dtype: str
    method: str
    mode: str
    backward: bool
    milliseconds: float
    peak_mebibytes: float
    gigabytes_per_second: float | None
    share: float | None


class ModelRow(NamedTuple):
    """Images per second of a whole backbone."""

    model: str
    training: bool
    images_per_second: float
    peak_mebibytes: float


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tokens', nargs='+', type=int, default=[2**n for n in range(10, 19, 2)])
    parser.add_argument('--head-dims', nargs='+', type=int, default=[64, 32, 96, 48])
    parser.add_argument('--dtypes', nargs='+', default=['bfloat16', 'float32'])
    parser.add_argument(
        '--total-tokens', nargs='+', type=int, default=[2**18, 2**16, 2**13], help='batch x tokens'
    )
    parser.add_argument('--models', action='store_true', help='whole backbones, too')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'docs' / 'benchmarks')
    parser.add_argument('--resume', action='store_true', help='go on with the JSON that is there')
    parser.add_argument('--minutes', type=float, default=math.inf, help='begin nothing after these')
    parser.add_argument('--toy', action='store_true', help='tiny tensors, without a GPU')
    args = parser.parse_args()
    if min(*args.tokens, *args.head_dims, *args.total_tokens) < 1:
        parser.error('tokens and head dimensions are whole numbers from 1 on')
    return args


class CudaClock:
    """Times and memory of a GPU."""

    device = 'cuda'
    calls, rounds, round_milliseconds = 20, 7, 20.0

    def eager(self, function: Callable[[], object]) -> float:
        """Milliseconds of a call among others, queued one after the other: the median of rounds."""
        return self._median(function)

    def graph(self, function: Callable[[], object]) -> float:
        """Milliseconds of a replay, the launches of a call as one graph."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            function()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        graph.replay()
        return self._median(graph.replay)

    def _round(self, function: Callable[[], object], calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    def _median(self, function: Callable[[], object]) -> float:
        """Of rounds, each of as many calls as a slow function leaves time for."""
        once = self._round(function, 1)
        calls = max(1, min(self.calls, int(self.round_milliseconds / max(once, 1e-3))))
        return median(self._round(function, calls) for _ in range(self.rounds))

    def peak(self, function: Callable[[], object]) -> float:
        """Mebibytes that a call adds, after calls that tune and compile."""
        for _ in range(3):
            function()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def name(self) -> str:
        return torch.cuda.get_device_name()


class ToyClock:
    """Stands in for :class:`CudaClock` where there is no GPU: every path is gone, once."""

    device = 'cpu'

    def eager(self, function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * 1e3

    def graph(self, function: Callable[[], object]) -> float:
        return 1.0

    def peak(self, function: Callable[[], object]) -> float:
        return 1.0

    def name(self) -> str:
        return 'toy, no GPU'


Clock = CudaClock | ToyClock


def inputs(case: Case, device: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v as views of one packed projection, theta, and a gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)
    batch, heads, tokens, channels = case.shape
    packed = torch.randn(
        batch, tokens, 4, heads, channels, device=device, dtype=case.dtype, generator=generator
    )
    *qkv, grad = packed.permute(2, 0, 3, 1, 4).unbind(0)
    theta = torch.randn(heads, channels // 2, device=device, generator=generator)
    return [x.detach() for x in qkv], theta, grad.contiguous()


def formula(**options: object) -> Callable[..., Tensor]:
    """The reference of q, k, v and theta."""
    from mirrorla_mm.ops import mirror_attention_reference

    return lambda q, k, v, theta: mirror_attention_reference(q, k, v, theta, **options)


def methods(case: Case) -> dict[str, Method]:
    """Operators to compare; every one takes q, k, v and theta.

    The plain peers do not turn by position, so the fused operator does not beside them.
    """
    from mirrorla_mm.analysis import plain_triton
    from mirrorla_mm.ops import mirror_attention, use_backend

    hw_shape = (case.side, case.side)
    mirror, plain = formula(hw_shape=hw_shape), dict(feature_map='relu', rank_augmented=False)

    def fused(q, k, v, theta, **options):
        with use_backend('triton'):
            return mirror_attention(q, k, v, theta, **options)

    def linear(q, k, v, theta):
        q, k = q.relu(), k.relu()
        key = k.sum(-2, keepdim=True).transpose(-2, -1)
        return q @ (k.transpose(-2, -1) @ v) / (q @ key + 1e-6)

    def softmax(q, k, v, theta):
        return F.scaled_dot_product_attention(q, k, v)

    folded = dict(feature_map='relu', hw_shape=hw_shape)
    found = {
        'fused': Method(partial(fused, hw_shape=hw_shape), mirror),
        'fused, reflection folded': Method(
            lambda q, k, v, theta: fused(q, k, v, None, **folded), formula(**folded)
        ),
        'fused, plain ReLU': Method(
            lambda q, k, v, theta: fused(q, k, v, None, **plain), formula(**plain)
        ),
        'eager': Method(mirror, mirror),
        'plain linear attention, Triton': Method(
            lambda q, k, v, theta: plain_triton.plain_linear_attention(q.relu(), k.relu(), v),
            formula(**plain),
        ),
        'plain linear attention, library products': Method(linear, formula(**plain)),
    }
    if case.compiles:
        torch.compiler.reset()  # all sizes share eager's code, which is compiled a few times only
        compiled = torch.compile(mirror, dynamic=False, backend=COMPILER)
        found['compiled'] = Method(compiled, mirror)
    if case.shape[2] <= SLOW_SDPA_TOKENS and case.dtype != torch.float32:
        found['SDPA'] = Method(
            softmax, lambda q, k, v, theta: softmax(q[..., :CHECKED_QUERIES, :], k, v, theta)
        )
    return found


def layer_inputs(case: Case, device: str) -> list[Tensor]:
    """A layer's input x (B, N, C), the weight (3C, C) of its projection to q, k, v, and theta."""
    generator = torch.Generator(device).manual_seed(0)
    batch, heads, tokens, channels = case.shape
    width = heads * channels
    shapes = ((batch, tokens, width), (3 * width, width), (heads, channels // 2))
    x, weight, theta = (torch.randn(s, device=device, generator=generator) for s in shapes)
    return [x.to(case.dtype), (weight * width**-0.5).to(case.dtype), theta]


def layers(case: Case) -> dict[str, Method]:
    """The two entries; both take what :func:`layer_inputs` makes."""
    from mirrorla_mm.ops import mirror_attention, use_backend
    from mirrorla_mm.ops.folding import fold_block_reflection, projected_angle

    def attend(*qkv, theta=None, **options):
        heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in qkv)
        with use_backend('triton'):
            return mirror_attention(*heads, theta, hw_shape=(case.side, case.side), **options)

    def in_operator(x, weight, theta):
        return attend(*F.linear(x, weight).chunk(3, -1), theta=theta)

    def in_projection(x, weight, theta):
        *qk, v = weight.chunk(3)
        weight = torch.cat(qk)
        angle = projected_angle(weight, x, torch.cat((theta, theta)))
        folded, shift = fold_block_reflection(weight, None, angle)
        q, k = torch.baddbmm(shift, x, folded).chunk(2, -1)
        return attend(q, k, F.linear(x, v), feature_map='relu')

    exact = formula(hw_shape=(case.side, case.side))
    return {IN_OPERATOR: Method(in_operator, exact), IN_PROJECTION: Method(in_projection, exact)}


@contextmanager
def going_on(part: str, failures: dict[str, str]) -> Iterator[None]:
    """Print and note an error in a part of the run, instead of ending it; forget an earlier one."""
    failures.pop(part, None)
    try:
        yield
    except Exception as error:
        failures[part], *_ = f'{type(error).__name__}: {error}'.splitlines()
        print(f'FAILED {part}: {failures[part]}', file=sys.stderr, flush=True)
        if torch.cuda.is_available():
            with suppress(RuntimeError):  # a GPU that has lost its context
                torch.cuda.empty_cache()


def check(case: Case, device: str) -> None:
    """Compare output and gradients of the fused operator with the float64 reference.

    Raises:
        ArithmeticError: If one is off by more than the tolerance of its dtype.
    """
    qkv, theta, grad = inputs(case, device)
    fused = methods(case)['fused']
    leaves = [x.requires_grad_() for x in (*qkv, theta)]
    double = [x.detach().double().requires_grad_() for x in leaves]
    results = []
    for function, args, g in ((fused.run, leaves, grad), (fused.exact, double, grad.double())):
        out = function(*args)
        results.append((out.detach(), *torch.autograd.grad(out, args, g)))
    for name, actual, expected in zip(('out', 'q', 'k', 'v', 'theta'), *results):
        _compare(f'{case}: {name}', actual, expected, TOLERANCE[case.dtype])


def first_head(given: Sequence[Tensor]) -> list[Tensor]:
    """q, k, v and theta in float64 of the first head of the first image.

    Args:
        given (Sequence[Tensor]): q, k, v and theta, or what :func:`layer_inputs` makes.
    """
    *tensors, theta = given
    if len(tensors) == 2:
        x, weight = tensors
        of_head = weight.double().unflatten(0, (3, HEADS, -1))[:, 0]
        tensors = [F.linear(x[:1].double(), part).unsqueeze(1) for part in of_head]
    return [*(x[:1, :1].double() for x in tensors), theta[:1].double()]


def check_output(name: str, method: Method, given: Sequence[Tensor], tolerance: float) -> None:
    """Compare a method's first head with what it has to give.

    Raises:
        ArithmeticError: If it is off by more than the tolerance.
    """
    expected = method.exact(*first_head(given))
    actual = method.run(*given)[:1, :1, : expected.shape[2]]
    _compare(name, actual, expected, tolerance)


def _compare(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
    if not error <= tolerance:
        raise ArithmeticError(f'{name} is off by {error:.1e}, more than {tolerance}.')


def copy_bandwidth(clock: Clock, size: int = 2**30) -> float:
    """Gigabytes per second read and written by a copy."""
    source = torch.empty(size, dtype=torch.int8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / clock.eager(lambda: target.copy_(source)) / 1e6


class Timing(NamedTuple):
    """One row to be measured of a case."""

    method: str
    backward: bool
    mode: str


def missing(case: Case, rows: list[Row]) -> list[Timing]:
    """What the rows do not have of a case yet."""
    done = {(row[:4], Timing(row.method, row.backward, row.mode)) for row in rows}
    wanted = itertools.starmap(
        Timing, itertools.product((*methods(case), *layers(case)), (False, True), MODES)
    )
    return [timing for timing in wanted if (tuple(case.name), timing) not in done]


def measure(
    case: Case, wanted: list[Timing], copy: float, clock: Clock, failures: dict[str, str]
) -> Iterator[Row]:
    """Check every method, then time it forwards, and forwards and backwards, as is wanted."""
    from mirrorla_mm.analysis.traffic import floor_bytes
    from mirrorla_mm.ops.options import Options

    qkv, theta, grad = inputs(case, clock.device)
    floors = {
        'fused': Options('mirror', True, True, 1.0, 1.0, (case.side, case.side)),
        'fused, reflection folded': Options('relu', True, False, 1.0, 1.0, ()),
        'fused, plain ReLU': Options('relu', False, False, 1.0, 1.0, ()),
    }
    runs = [(name, method, (*qkv, theta)) for name, method in methods(case).items()]
    runs += [
        (name, layer, layer_inputs(case, clock.device)) for name, layer in layers(case).items()
    ]
    for name, method, given in runs:
        if not any(name == timing.method for timing in wanted):
            continue
        tolerance = TOLERANCE[case.dtype] * (1 if name.startswith('fused') else OF_PEERS)
        right = False
        with going_on(f'{case.name}, {name}', failures):
            check_output(f'{case}: {name}', method, given, tolerance)
            right = True
        for backward in (False, True) if right else ():
            modes = [mode for mode in MODES if Timing(name, backward, mode) in wanted]
            if not modes:
                continue
            args = [x.detach().requires_grad_(backward) for x in given]

            def run(function=method.run, args=args, backward=backward):
                out = function(*args)
                if backward:
                    torch.autograd.grad(out, args, grad, allow_unused=True)

            moved = None
            if name in floors:
                moved = sum(
                    floor_bytes(case.shape, case.dtype, floors[name], backward=b)
                    for b in (False, True)[: 1 + backward]
                )
            with going_on(f'{case.name}, {name}, backward={backward}', failures):
                peak = clock.peak(run)
                for mode in modes:
                    milliseconds = getattr(clock, mode)(run)
                    speed = moved and moved / milliseconds / 1e6
                    yield Row(
                        *case.name, name, mode, backward, milliseconds, peak, speed,
                        speed and speed / copy,
                    )  # fmt: skip


def models() -> dict[str, Callable[[], torch.nn.Module]]:
    """Backbones, by name; they need the OpenMMLab packages."""

    def mirrorla() -> torch.nn.Module:
        from mirrorla_mm.backbones import MirrorLA

        return MirrorLA('t', layout='linear')

    def upstream(name: str, **arguments: object) -> torch.nn.Module:
        import mmdet.models.backbones

        return getattr(mmdet.models.backbones, name)(**arguments)

    pvt = dict(embed_dims=64, num_layers=[2, 2, 2, 2], num_heads=[1, 2, 5, 8])
    return {
        MIRRORLA: mirrorla,
        SWIN: lambda: upstream('SwinTransformer'),
        'ResNet-50': lambda: upstream('ResNet', depth=50),
        'PVTv2-B1': lambda: upstream('PyramidVisionTransformerV2', **pvt),
    }


def measure_models(
    clock: Clock, batch: int, size: tuple[int, int], rounds: int, failures: dict[str, str]
) -> list[ModelRow]:
    """Training steps and inference in bfloat16; the models take turns, medians of the rounds."""
    image = torch.randn(batch, 3, *size, device=clock.device)
    built = {}
    for name, make in models().items():
        with going_on(name, failures):
            built[name] = make().to(clock.device)
    rows = []
    for training in (True, False):

        def step(model: torch.nn.Module, training: bool = training) -> None:
            with torch.autocast(clock.device, torch.bfloat16), torch.set_grad_enabled(training):
                outs = model(image)
                if training:
                    sum(out.float().square().mean() for out in outs).backward()
            model.zero_grad(set_to_none=True)

        peaks: dict[str, float] = {}
        for name, model in built.items():
            with going_on(f'{name}, training={training}', failures):
                model.train(training)
                step(model)
                peaks[name] = clock.peak(lambda m=model: step(m))
        times: dict[str, list[float]] = {name: [] for name in peaks}
        for _ in range(rounds):
            for name in peaks:
                times[name].append(clock.eager(lambda m=built[name]: step(m)))
        rows += [
            ModelRow(name, training, batch / median(times[name]) * 1e3, peak)
            for name, peak in peaks.items()
        ]
    return rows


def model_table(rows: list[ModelRow]) -> str:
    lines = ['| backbone | pass | images/s | peak MiB |', '| --- | --- | --- | --- |']
    for row in rows:
        kind = 'training' if row.training else 'inference'
        cells = (row.model, kind, f'{row.images_per_second:.1f}', f'{row.peak_mebibytes:.0f}')
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def table(rows: list[Row]) -> str:
    """Markdown, with how much faster the fused operator is."""
    fused = {
        (*row[:4], row.mode, row.backward): row.milliseconds
        for row in rows
        if row.method == 'fused'
    }
    header = (
        *('N', 'batch', 'd', 'dtype', 'method', 'mode', 'pass', 'ms'),
        *('fused is', 'peak MiB', 'GB/s', 'of copy'),
    )
    lines = ['| ' + ' | '.join(header) + ' |', '| ' + ' | '.join(['---'] * len(header)) + ' |']
    for row in rows:
        ratio = row.milliseconds / fused.get((*row[:4], row.mode, row.backward), math.nan)
        cells = (
            *row[:6],
            'forward + backward' if row.backward else 'forward',
            f'{row.milliseconds:.3f}',
            f'{ratio:.2f}x',
            f'{row.peak_mebibytes:.0f}',
            f'{row.gigabytes_per_second:.0f}' if row.gigabytes_per_second else '',
            f'{row.share:.0%}' if row.share else '',
        )
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


class Bar(NamedTuple):
    """A bar set before anything was measured.

    Attributes:
        text (str): Of which figure.
        wanted (float): What it has to reach everywhere.
        found (dict[str, float]): The figure at every size.
    """

    text: str
    wanted: float
    found: dict[str, float]

    @property
    def cells(self) -> tuple[str, str, str, str]:
        if not self.found:
            return self.text, f'{self.wanted:.2f}', '', 'not measured'
        where, worst = min(self.found.items(), key=lambda item: item[1])
        outcome = 'PASS' if worst >= self.wanted else 'FAIL'
        return self.text, f'{self.wanted:.2f}', f'{worst:.2f} ({where})', outcome


def bars(rows: list[Row], model_rows: list[ModelRow]) -> list[Bar]:
    """The bars for bfloat16 on an H200-class card; ratios are of the other's figure to ours."""
    others = {(row[:4], row.method, row.mode, row.backward): row for row in rows}

    def ours(mode: str, backward: bool, where: Callable[[Row], bool]) -> dict[str, Row]:
        return {
            f'N {row.tokens}, batch {row.batch}, d {row.head_dim}': row
            for row in rows
            if (row.method, row.mode, row.backward) == ('fused', mode, backward)
            and row.dtype == 'bfloat16'
            and where(row)
        }

    def ratio(
        method: str, own: dict[str, Row], field: str = 'milliseconds', mode: str = 'eager'
    ) -> dict[str, float]:
        pairs = {
            size: (others.get((row[:4], method, mode, row.backward)), row)
            for size, row in own.items()
        }
        return {
            size: getattr(other, field) / getattr(row, field)
            for size, (other, row) in pairs.items()
            if other
        }

    def share(own: dict[str, Row]) -> dict[str, float]:
        return {size: row.share for size, row in own.items() if row.share}

    def all_tokens(row: Row) -> int:
        return row.tokens * row.batch * HEADS

    def large(row: Row) -> bool:
        return all_tokens(row) >= 2**20

    found = []
    for backward, *wanted in ((False, 5, 1.5, 0.70, 20), (True, 3, 1.3, 0.55, 20)):
        kind = 'forward + backward' if backward else 'forward'
        own = ours('eager', backward, large)
        long_ones = ours('eager', backward, lambda row: row.tokens == 2**16)
        figures = (
            (f'{kind}, B·H·N >= 2^20, times the eager reference', ratio('eager', own)),
            (f'{kind}, B·H·N >= 2^20, times the compiled one', ratio('compiled', own)),
            (f'{kind}, B·H·N >= 2^20, share of the copy', share(own)),
            (f'{kind}, 64 k tokens, times SDPA', ratio('SDPA', long_ones)),
        )
        found += [Bar(text, goal, x) for (text, x), goal in zip(figures, wanted)]
    replayed = ours('graph', False, lambda row: all_tokens(row) >= 2**18)
    small = ours('graph', False, lambda row: all_tokens(row) == 2**15)
    memory = ratio('eager', ours('eager', True, large), 'peak_mebibytes')
    found += [
        Bar('forward as a graph, B·H·N >= 2^18, share of the copy', 0.6, share(replayed)),
        Bar('forward as a graph, B·H·N = 2^15, times the eager calls', 8, ratio('eager', small)),
        Bar('peak memory of training, B·H·N >= 2^20, eager by ours', 4, memory),
    ]
    speed = {(row.model, row.training): row.images_per_second for row in model_rows}
    for training in (True, False):
        pair = [speed.get((name, training)) for name in (MIRRORLA, SWIN)]
        kind = 'training' if training else 'inference'
        ahead = {'800 x 1280, batch 16': pair[0] / pair[1]} if all(pair) else {}
        found.append(Bar(f'{kind}, images per second, times Swin-T', 1, ahead))
    return found


def bar_table(found: list[Bar]) -> str:
    lines = ['| bar | at least | worst | outcome |', '| --- | --- | --- | --- |']
    return '\n'.join([*lines, *('| ' + ' | '.join(bar.cells) + ' |' for bar in found)])


def recommendations(rows: list[Row]) -> str:
    """Which entry is faster, size by size, as a graph."""
    milliseconds = {
        (*row[:4], row.backward, row.method): row.milliseconds
        for row in rows
        if row.mode == 'graph'
    }
    lines = []
    for *size, method in milliseconds:
        there = milliseconds.get((*size, IN_PROJECTION))
        if method != IN_OPERATOR or there is None:
            continue
        here = milliseconds[(*size, method)]
        tokens, batch, head_dim, dtype, backward = size
        lines.append(
            f'- N {tokens}, batch {batch}, d {head_dim}, {dtype}, '
            f'{"forward + backward" if backward else "forward"}: mirror in the '
            f'{"operator" if here <= there else "projection"} '
            f'({here:.3f} ms in the operator, {there:.3f} ms in the projection)'
        )
    return '\n'.join(lines)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write a file that then appears as a whole; ``engine.atomic`` needs OpenMMLab."""
    unfinished = path.with_name(f'{path.name}.part')
    yield unfinished
    unfinished.replace(path)


def plot(rows: list[Row], path: Path, heading: str) -> None:
    """Milliseconds of a replay over N for the first head dimension and dtype.

    Skipped without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No plot: matplotlib is not installed.')
        return
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    figure.suptitle(heading)
    first = rows[0]
    for axes, backward in zip(figure.subplots(1, 2), (False, True)):
        for method in dict.fromkeys(row.method for row in rows):
            points = [
                (row.tokens, row.milliseconds / row.batch)
                for row in rows
                if (row.method, row.backward, row.mode) == (method, backward, 'graph')
                and (row.head_dim, row.dtype) == (first.head_dim, first.dtype)
            ]
            if points:
                axes.loglog(*zip(*points), marker='o', label=method)
        kind = 'forward + backward' if backward else 'forward'
        title = f'{kind}, {first.dtype}, d = {first.head_dim}'
        axes.set(xlabel='tokens N', ylabel='ms per image', title=title)
        axes.legend()
    with whole(path) as unfinished:
        figure.savefig(unfinished, format='png', dpi=150)


def cases(args: argparse.Namespace) -> list[Case]:
    return [
        Case(total // tokens, math.isqrt(tokens), head_dim, getattr(torch, dtype))
        for dtype in args.dtypes
        for head_dim in args.head_dims
        for total in args.total_tokens
        for tokens in args.tokens
        if tokens <= total
    ]


def write(
    args: argparse.Namespace,
    about: dict,
    rows: list[Row],
    model_rows: list[ModelRow],
    failures: dict[str, str],
) -> None:
    """The JSON, which ``--resume`` reads, the page and the plot."""
    args.out.mkdir(parents=True, exist_ok=True)
    found = {
        **about,
        'rows': [row._asdict() for row in rows],
        'models': [row._asdict() for row in model_rows],
        'failures': failures,
    }
    with whole(args.out / 'ops.json') as unfinished:
        unfinished.write_text(json.dumps(found, indent=1))
    text = '\n'.join(f'- {name}: {value}' for name, value in about.items())
    parts = [f'# Operators\n\n{text}', '## Bars, bfloat16', bar_table(bars(rows, model_rows))]
    if failures:
        parts += ['## Failed', '\n'.join(f'- {part}: {why}' for part, why in failures.items())]
    parts += ['## Every size', table(rows)]
    parts += [f'## Where the mirror belongs\n\n{recommendations(rows)}']
    if model_rows:
        parts += [
            f'## Whole backbones, 800 x 1280, batch 16, bfloat16\n\n{model_table(model_rows)}'
        ]
    with whole(args.out / 'ops.md') as unfinished:
        unfinished.write_text('\n\n'.join(parts) + '\n')
    if rows:
        plot(rows, args.out / 'ops.png', f'{about["device"]}, {about["date"]}')


def earlier(
    args: argparse.Namespace, about: dict
) -> tuple[dict, list[Row], list[ModelRow], dict[str, str]]:
    """What a run that was cut short left: about it, its rows and its failures.

    Rows of another device or other versions are an error. The dates and commands of both runs are
    named; the copy is the first run's, by which its shares were taken.
    """
    path = args.out / 'ops.json'
    if not (args.resume and path.exists()):
        return about, [], [], {}
    found = json.loads(path.read_text())
    for field in ('device', 'torch', 'triton'):
        if found.get(field) != about[field]:
            sys.exit(
                f'{path} was measured on {field} {found.get(field)}, not on {about[field]}: '
                'move it away, or go on where it was measured.'
            )
    for field in ('date', 'command'):
        both = [*found[field].split('; '), about[field]]
        about[field] = '; '.join(dict.fromkeys(both))
    about['copy_gigabytes_per_second'] = found['copy_gigabytes_per_second']
    rows = [Row(**x) for x in found['rows']]
    return about, rows, [ModelRow(**x) for x in found['models']], found['failures']


def as_toy(args: argparse.Namespace) -> None:
    """Sizes that the interpreter gets through in seconds."""
    global COMPILER
    COMPILER = 'eager'
    args.tokens, args.total_tokens, args.head_dims = [36], [36], [16]
    args.dtypes = ['float32']
    os.environ['TRITON_INTERPRET'] = '1'


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(REPOSITORY))
    clock: Clock = CudaClock()
    if args.toy:
        as_toy(args)
        clock = ToyClock()
        if args.out == REPOSITORY / 'docs' / 'benchmarks':
            sys.exit('Times of --toy mean nothing: give it a folder of its own with --out.')
    elif not torch.cuda.is_available():
        sys.exit('There is no GPU to measure on; --toy goes through it all on tiny tensors.')
    torch.backends.cuda.matmul.allow_tf32 = False
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else the rest runs uncompiled
    # Another backend would be timed under the operator's name.
    warnings.filterwarnings('error', 'The fused mirror attention', RuntimeWarning)
    import triton

    start = time.monotonic()
    about = {
        'device': clock.name(),
        'torch': torch.__version__,
        'triton': triton.__version__,
        'date': date.today().isoformat(),
        'command': ' '.join(['python', *sys.argv]),
    }
    about, rows, model_rows, failures = earlier(args, about)
    right = set()
    for dtype in args.dtypes:
        for head_dim in args.head_dims:
            with going_on(f'check of {dtype}, d {head_dim}', failures):
                check(Case(2, 6 if args.toy else 64, head_dim, getattr(torch, dtype)), clock.device)
                right.add((dtype, head_dim))
                print(f'{dtype}, d {head_dim}: output and gradients agree with the reference.')
    if 'copy_gigabytes_per_second' not in about:
        about['copy_gigabytes_per_second'] = copy_bandwidth(clock, 2**20 if args.toy else 2**30)
    copy = about['copy_gigabytes_per_second']
    wanted = [
        (case, timings)
        for case in cases(args)
        if (case.name[3], case.head_dim) in right and (timings := missing(case, rows))
    ]
    # They take turns, so one that failed is measured with all others.
    wanted_models = set(itertools.product(models(), (True, False))) if args.models else set()
    if wanted_models - {(row.model, row.training) for row in model_rows}:
        size = (1, (64, 64), 1) if args.toy else (16, (800, 1280), 5)
        model_rows = measure_models(clock, *size, failures)
        print(model_table(model_rows), flush=True)
    for number, (case, timings) in enumerate(wanted, 1):
        if time.monotonic() - start > 60 * args.minutes:
            print(f'{args.minutes:g} minutes are over; --resume goes on at {case}.')
            break
        found = list(measure(case, timings, copy, clock, failures))
        print(f'[{number}/{len(wanted)}]', table(found), sep='\n', flush=True)
        rows += found
        write(args, about, rows, model_rows, failures)
    write(args, about, rows, model_rows, failures)
    print(recommendations(rows), bar_table(bars(rows, model_rows)), sep='\n')


if __name__ == '__main__':
    main()
