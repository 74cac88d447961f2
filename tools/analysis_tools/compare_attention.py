"""Compare attentions in one host: size, FLOPs, speed, memory and what their maps are like.

python tools/analysis_tools/compare_attention.py --host swin --size 224 --out attentions.png

With --out each method alone is also timed on growing grids of tokens, which take turns, each method
in a process of its own. A second table says by what its time grows for four times the tokens. On a
CPU memory that was freed is kept for the next pass, as a GPU's allocator does.

Weights are at their initial values and the image is noise, so that nothing here is an accuracy.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from mirrorla_mm.analysis.benchmark import in_fresh_process
from mirrorla_mm.analysis.compare import (
    HOSTS,
    Cost,
    Facts,
    compare,
    fourfold,
    scaling,
)
from mirrorla_mm.analysis.provenance import heading
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.figures import save_figure
from mirrorla_mm.engine.memory import keep_freed_memory
from mirrorla_mm.registry import ATTENTIONS

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

# Linear growth, with room for what a larger map loses in the caches.
LINEAR = 4.6


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare attentions in one host')
    parser.add_argument('--methods', nargs='+', help='registered names (default: all)')
    parser.add_argument('--host', choices=HOSTS, default='ravlt', help='backbone (default: ravlt)')
    parser.add_argument('--arch', default='t', help='architecture of the host (default: t)')
    parser.add_argument(
        '--size',
        type=positive_int,
        nargs='+',
        default=[224],
        help='height and width, or one number for both',
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--repeats', type=positive_int, default=7, help='timed passes; the median counts'
    )
    parser.add_argument('--out', type=Path, help='PNG of latency and memory over the tokens')
    parser.add_argument(
        '--sides',
        type=positive_int,
        nargs='+',
        default=[28, 56, 112, 224],
        help='sides of the token grids in the PNG, in growing order',
    )
    args = parser.parse_args()
    known = sorted(ATTENTIONS)
    args.methods = args.methods or known
    for method in args.methods:
        if method not in known:
            parser.error(f"there is no attention '{method}'; choose from {', '.join(known)}.")
    if len(args.size) > 2:
        parser.error('--size takes one or two numbers: height and width.')
    return args


@one_line_errors()
def main() -> None:
    args = parse_args()
    usable_device(args.device)
    keep_freed_memory()
    height, width = args.size[0], args.size[-1]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, height, width, generator=generator).to(args.device)
    print(heading())
    rows = [
        compare(method, args.host, args.arch, image, args.repeats)
        for method in progress(args.methods, 'in the host')
    ]
    device = torch.cuda.get_device_name(args.device) if 'cuda' in args.device else 'CPU'
    title = f'{args.host}-{args.arch} at {height}x{width}, batch 1, float32, {device}'
    Console(width=120).print(table(rows, title))
    if args.out:
        costs = {}
        title = f'One module, 64 channels, 2 heads, float32, {device}'
        for method in progress(args.methods, 'alone'):
            costs[method] = in_fresh_process(grow, method, args)
            plot(costs, args.sides, title, args.out)
        Console(width=170).print(growth_table(costs, args.sides, title))
        print(f'wrote {args.out}')


def progress(methods: list[str], place: str) -> Iterable[str]:
    """The methods in turn, with a bar beside the tables, which may go to a file."""
    return track(methods, place, console=Console(stderr=True))


def grow(method: str, args: argparse.Namespace) -> list[tuple[Cost, Cost]]:
    """Costs of a method on the grids."""
    keep_freed_memory()
    return scaling(method, args.sides, device=args.device, repeats=args.repeats)


def table(rows: list[Facts], title: str) -> Table:
    """One line a method."""
    result = Table(title=title)
    for name in (
        'method',
        'params\n(M)',
        'layers\n(GMAC)',
        'all\n(GMAC)',
        'inference\n(ms)',
        '\n(MiB)',
        'training\n(ms)',
        '\n(MiB)',
        'rank',
        'entropy',
        'dead',
    ):
        result.add_column(name, justify='left' if name == 'method' else 'right')
    for row in rows:
        result.add_row(
            row.method.removesuffix('Attention'),
            f'{row.params / 1e6:.2f}',
            f'{row.layers / 1e9:.2f}',
            f'{row.total / 1e9:.2f}',
            *_cells(row.inference),
            *_cells(row.training),
            f'{row.maps.rank:.0f}',
            f'{row.maps.entropy:.3f}',
            f'{row.maps.dead:.0%}',
        )
    return result


def growth_table(costs: dict[str, list[tuple[Cost, Cost]]], sides: list[int], title: str) -> Table:
    """Milliseconds by the tokens, and the growth of each step; what is not linear is marked."""
    result = Table(title=title, caption=f'x: for four times the tokens; ! above {LINEAR}')
    result.add_column('method')
    for name in ('inference', 'training'):
        for side in sides:
            result.add_column(f'{name}\n{side**2} (ms)', justify='right')
        result.add_column('x', justify='right')
    for method, pairs in costs.items():
        cells = []
        for passes in zip(*pairs):
            seconds = [cost.seconds for cost in passes]
            cells += [f'{1e3 * s:.1f}' for s in seconds] + [''] * (len(sides) - len(seconds))
            growth = fourfold(seconds, sides)
            cells.append(' '.join(f'{x:.2f}{"!" * (x > LINEAR)}' for x in growth))
        result.add_row(method.removesuffix('Attention'), *cells)
    return result


def plot(
    costs: dict[str, list[tuple[Cost, Cost]]], sides: list[int], title: str, out: Path
) -> None:
    """Latency and memory over the tokens, forwards and in training."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, layout='constrained')
    tokens = [side**2 for side in sides]
    for (method, pairs), style in zip(costs.items(), styles()):
        for column, passes in enumerate(zip(*pairs)):
            for row, values in enumerate(
                ([1e3 * cost.seconds for cost in passes], [cost.memory / 2**20 for cost in passes])
            ):
                axes[row, column].plot(
                    tokens[: len(values)],
                    values,
                    **style,
                    label=method.removesuffix('Attention'),
                )
    for axis, name in zip(axes.flat, ('inference', 'training') * 2):
        axis.set(xscale='log', yscale='log', xticks=tokens, xticklabels=tokens, title=name)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    for axis, label in zip(axes[:, 0], ('latency (ms)', 'peak memory (MiB)')):
        axis.set_ylabel(label)
    for axis in axes[1]:
        axis.set_xlabel('tokens N')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right center', fontsize=9)
    figure.suptitle(title)
    save_figure(figure, out, dpi=120)
    plt.close(figure)


def styles() -> Iterator[dict[str, object]]:
    """Looks of lines: ten colours, and a marker that no other of 16 lines has.

    Lines that lie on each other are told apart by the markers, as these are open and of two sizes.
    """
    for number, marker in enumerate(cycle('os^Dv<>pP*Xdh1x|')):
        yield dict(
            color=f'C{number % 10}',
            linestyle=('-', '--')[number // 10 % 2],
            marker=marker,
            markersize=(5, 8)[number % 2],
            fillstyle='none',
        )


def _cells(cost: Cost) -> tuple[str, str]:
    return f'{1e3 * cost.seconds:.1f}', f'{cost.memory / 2**20:.1f}'


if __name__ == '__main__':
    main()
