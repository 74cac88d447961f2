"""Check, then time the fused mirror attention against what else there is, on a GPU.

    python tools/analysis_tools/benchmark_ops.py

Needs torch and triton alone (matplotlib for the plot). Every result is checked against the float64
reference before anything is timed. The two entries, the mirror in the operator or folded into the
projection before it, are timed from the layer's input on, and the faster is named for every size.
Writes a table, JSON and a plot into ``docs/benchmarks``.
Without a GPU, ``--toy`` runs the check alone, on tiny tensors under triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
HEADS = 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
ENTRY_TOLERANCE = 1e-3
SLOW_SDPA_TOKENS = 2**17
IN_OPERATOR, IN_PROJECTION = 'layer, mirror in the operator', 'layer, mirror in the projection'
BARS = (
    'Bars, bf16, N >= 16 k: forward >= 5x eager and >= 1.5x compiled; forward + backward >= 3x and '
    '>= 1.3x; >= 60 % of the copy bandwidth; peak memory of training <= 1/4 of eager; '
    '>= 20x SDPA at 64 k.'
)


class Case(NamedTuple):
    """One size: q, k, v of shape (batch, HEADS, side^2, head_dim)."""

    batch: int
    side: int
    head_dim: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, HEADS, self.side**2, self.head_dim


class Row(NamedTuple):
    """One measurement; speed and share of the copy bandwidth for the fused operator alone."""

    tokens: int
    batch: int
    head_dim: int
    dtype: str
    method: str
    backward: bool
    milliseconds: float
    peak_mebibytes: float
    gigabytes_per_second: float | None
    share: float | None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tokens', nargs='+', type=int, default=[2**n for n in range(10, 19, 2)])
    parser.add_argument('--head-dims', nargs='+', type=int, default=[32, 64])
    parser.add_argument('--dtypes', nargs='+', default=['bfloat16', 'float32'])
    parser.add_argument('--total-tokens', type=int, default=2**18, help='batch times tokens')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'docs' / 'benchmarks')
    parser.add_argument('--toy', action='store_true', help='interpret tiny tensors, without a GPU')
    return parser.parse_args()


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


def methods(case: Case) -> dict[str, Callable[..., Tensor]]:
    """What is compared; every function takes q, k, v and theta."""
    from mirrorla_mm.ops import mirror_attention, mirror_attention_reference, use_backend

    hw_shape = (case.side, case.side)

    def fused(q, k, v, theta, **options):
        with use_backend('triton'):
            return mirror_attention(q, k, v, theta, hw_shape=hw_shape, **options)

    def eager(q, k, v, theta):
        return mirror_attention_reference(q, k, v, theta, hw_shape=hw_shape)

    found = {
        'fused': fused,
        'fused, reflection folded': lambda q, k, v, theta: fused(q, k, v, None, feature_map='relu'),
        'fused, plain ReLU': lambda q, k, v, theta: fused(
            q, k, v, None, feature_map='relu', rank_augmented=False
        ),
        'eager': eager,
        'compiled': torch.compile(eager, dynamic=False),
    }
    if case.shape[2] <= SLOW_SDPA_TOKENS and case.dtype != torch.float32:
        found['SDPA'] = lambda q, k, v, theta: F.scaled_dot_product_attention(q, k, v)
    return found


def layer_inputs(case: Case, device: str) -> list[Tensor]:
    """A layer's input x (B, N, C), the weight (3C, C) of its projection to q, k, v, and theta."""
    generator = torch.Generator(device).manual_seed(0)
    batch, heads, tokens, channels = case.shape
    width = heads * channels
    shapes = ((batch, tokens, width), (3 * width, width), (heads, channels // 2))
    x, weight, theta = (torch.randn(s, device=device, generator=generator) for s in shapes)
    return [x.to(case.dtype), (weight * width**-0.5).to(case.dtype), theta]


def layers(case: Case) -> dict[str, Callable[..., Tensor]]:
    """The two entries; both functions take what :func:`layer_inputs` makes."""
    from mirrorla_mm.ops import mirror_attention, use_backend
    from mirrorla_mm.ops.folding import fold_block_reflection, token_covariance

    def attend(*qkv, theta=None, **options):
        heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in qkv)
        with use_backend('triton'):
            return mirror_attention(*heads, theta, hw_shape=(case.side, case.side), **options)

    def in_operator(x, weight, theta):
        return attend(*F.linear(x, weight).chunk(3, -1), theta=theta)

    def in_projection(x, weight, theta):
        *qk, v = weight.chunk(3)
        angles = torch.cat((theta, theta))
        folded, shift = fold_block_reflection(torch.cat(qk), None, angles, token_covariance(x))
        q, k = torch.baddbmm(shift, x, folded).chunk(2, -1)
        return attend(q, k, F.linear(x, v), feature_map='relu')

    return {IN_OPERATOR: in_operator, IN_PROJECTION: in_projection}


def check(case: Case, device: str) -> None:
    """Compare output and gradients of the fused operator with the float64 reference.

    Raises:
        SystemExit: If one is off by more than the tolerance of its dtype.
    """
    qkv, theta, grad = inputs(case, device)
    functions = methods(case)
    leaves = [x.requires_grad_() for x in (*qkv, theta)]
    double = [x.detach().double().requires_grad_() for x in leaves]
    results = []
    for function, args, g in (
        (functions['fused'], leaves, grad),
        (functions['eager'], double, grad.double()),
    ):
        out = function(*args)
        results.append((out.detach(), *torch.autograd.grad(out, args, g)))
    for name, actual, expected in zip(('out', 'q', 'k', 'v', 'theta'), *results):
        _compare(f'{case}: {name}', actual, expected, TOLERANCE[case.dtype])
    if case.dtype == torch.float32:
        entries = [layer(*layer_inputs(case, device)) for layer in layers(case).values()]
        _compare(f'{case}: the mirror in the projection', *entries, ENTRY_TOLERANCE)


def _compare(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
    if not error <= tolerance:
        sys.exit(f'{name} is off by {error:.1e}, more than {tolerance}.')


def time_cuda(function: Callable[[], object], repeats: int = 30) -> tuple[float, float]:
    """Median milliseconds, each with a cold L2 cache, and the peak mebibytes it adds."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    flush = torch.empty(2**28, dtype=torch.int8, device='cuda')
    times = []
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2], peak


def copy_bandwidth() -> float:
    """Gigabytes per second read and written by a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.int8, device='cuda')
    target = torch.empty_like(source)
    milliseconds, _ = time_cuda(lambda: target.copy_(source))
    return 2 * source.nbytes / milliseconds / 1e6


def measure(case: Case, copy: float) -> Iterator[Row]:
    """Time every method forwards, then forwards and backwards."""
    from mirrorla_mm.analysis.traffic import floor_bytes
    from mirrorla_mm.ops.options import Options

    qkv, theta, grad = inputs(case, 'cuda')
    floors = {
        'fused': Options('mirror', True, True, 1.0, 1.0, (case.side, case.side)),
        'fused, reflection folded': Options('relu', True, False, 1.0, 1.0, ()),
        'fused, plain ReLU': Options('relu', False, False, 1.0, 1.0, ()),
    }
    runs = [(name, function, (*qkv, theta)) for name, function in methods(case).items()]
    runs += [(name, layer, layer_inputs(case, 'cuda')) for name, layer in layers(case).items()]
    for name, function, given in runs:
        for backward in (False, True):
            args = [x.detach().requires_grad_(backward) for x in given]

            def run(function=function, args=args, backward=backward):
                out = function(*args)
                if backward:
                    torch.autograd.grad(out, args, grad, allow_unused=True)

            try:
                milliseconds, peak = time_cuda(run)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            speed = None
            if name in floors:
                sizes = [
                    floor_bytes(case.shape, case.dtype, floors[name], backward=b)
                    for b in (False, True)[: 1 + backward]
                ]
                speed = sum(sizes) / milliseconds / 1e6
            yield Row(
                case.shape[2], case.batch, case.head_dim, str(case.dtype).removeprefix('torch.'),
                name, backward, milliseconds, peak, speed, speed and speed / copy,
            )  # fmt: skip


def table(rows: list[Row]) -> str:
    """Markdown, with how much faster the fused operator is."""
    fused = {row[:4] + (row.backward,): row.milliseconds for row in rows if row.method == 'fused'}
    lines = [
        '| N | batch | d | dtype | method | pass | ms | fused is | peak MiB | GB/s | of copy |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for row in rows:
        ratio = row.milliseconds / fused.get(row[:4] + (row.backward,), math.nan)
        cells = (
            *row[:5],
            'forward + backward' if row.backward else 'forward',
            f'{row.milliseconds:.3f}',
            f'{ratio:.2f}x',
            f'{row.peak_mebibytes:.0f}',
            f'{row.gigabytes_per_second:.0f}' if row.gigabytes_per_second else '',
            f'{row.share:.0%}' if row.share else '',
        )
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


def recommendations(rows: list[Row]) -> str:
    """Which entry is faster, size by size."""
    milliseconds = {(*row[:4], row.backward, row.method): row.milliseconds for row in rows}
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


def plot(rows: list[Row], path: Path, heading: str) -> None:
    """Milliseconds over N for the first head dimension and dtype; skipped without matplotlib."""
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
                if (row.method, row.backward) == (method, backward)
                and (row.head_dim, row.dtype) == (first.head_dim, first.dtype)
            ]
            if points:
                axes.loglog(*zip(*points), marker='o', label=method)
        kind = 'forward + backward' if backward else 'forward'
        title = f'{kind}, {first.dtype}, d = {first.head_dim}'
        axes.set(xlabel='tokens N', ylabel='ms per image', title=title)
        axes.legend()
    figure.savefig(path, dpi=150)


def cases(args: argparse.Namespace) -> list[Case]:
    return [
        Case(
            max(1, args.total_tokens // tokens), math.isqrt(tokens), head_dim, getattr(torch, dtype)
        )
        for dtype in args.dtypes
        for head_dim in args.head_dims
        for tokens in args.tokens
    ]


def toy() -> None:
    """The check alone, interpreted."""
    for case in (Case(1, 6, 16, torch.float32), Case(1, 6, 16, torch.bfloat16)):
        check(case, 'cpu')
        print(f'{case}: output and gradients agree with the float64 reference.')


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(REPOSITORY))
    if args.toy:
        os.environ['TRITON_INTERPRET'] = '1'
        return toy()
    if not torch.cuda.is_available():
        sys.exit('There is no GPU to measure on; --toy checks tiny tensors under the interpreter.')
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in args.dtypes:
        for head_dim in args.head_dims:
            check(Case(2, 64, head_dim, getattr(torch, dtype)), 'cuda')
    print('Output and gradients agree with the float64 reference.')
    copy, rows = copy_bandwidth(), []
    for case in cases(args):
        rows += measure(case, copy)
        print('\n'.join(table(rows).splitlines()[-16:]), flush=True)
    print(recommendations(rows))
    import triton

    about = {
        'device': torch.cuda.get_device_name(),
        'date': date.today().isoformat(),
        'torch': torch.__version__,
        'triton': triton.__version__,
        'copy_gigabytes_per_second': copy,
        'command': ' '.join(['python', *sys.argv]),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    title = f'{about["device"]}, {about["date"]}'
    text = '\n'.join(f'- {name}: {value}' for name, value in about.items())
    (args.out / 'ops.md').write_text(
        f'# Operators\n\n{text}\n\n{BARS}\n\n{table(rows)}\n\n'
        f'## Where the mirror belongs\n\n{recommendations(rows)}\n'
    )
    (args.out / 'ops.json').write_text(
        json.dumps({**about, 'rows': [row._asdict() for row in rows]}, indent=1)
    )
    plot(rows, args.out / 'ops.png', title)


if __name__ == '__main__':
    main()
