"""Compare latency and memory of a DiT with softmax and with the mirror over the tokens, in one run.

    python tools/analysis_tools/benchmark_dit.py
    python tools/analysis_tools/benchmark_dit.py --device cuda --batch 8 --amp

Methods take turns at each size, so that whatever else the machine does hits all alike. Weights are
at their initial values. Memory is what a pass allocates at its peak; what a kernel allocates and
frees within itself is seen on a GPU alone.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

from mirrorla_mm.analysis.benchmark import elapsed
from mirrorla_mm.analysis.compare import peak_memory
from mirrorla_mm.analysis.provenance import heading
from mirrorla_mm.diffusion import DiT
from mirrorla_mm.diffusion.dit import ARCHS
from mirrorla_mm.diffusion.study import ARMS
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.memory import keep_freed_memory

import torch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', choices=tuple(ARCHS), default='s')
    parser.add_argument(
        '--methods', nargs='+', choices=ARMS, default=['softmax', 'mirror'], metavar='METHOD'
    )
    parser.add_argument(
        '--sides',
        type=positive_int,
        nargs='+',
        default=[16, 32, 64, 128],
        help='sides of the token grids: 256, 1024, 4096 and 16384 tokens',
    )
    parser.add_argument('--batch', type=positive_int, default=1)
    parser.add_argument(
        '--rounds', type=positive_int, default=5, help='timed passes; the median counts'
    )
    parser.add_argument(
        '--patience', type=float, default=10, help='seconds after which no further round begins'
    )
    parser.add_argument('--amp', action='store_true', help='bfloat16')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


@one_line_errors()
def main() -> None:
    args = parse_args()
    usable_device(args.device)
    keep_freed_memory()
    print(heading())
    head = ['tokens', *(f'{ARMS[name].label}: {unit}' for name in args.methods for unit in UNITS)]
    head.append('latency over the first')
    for cells in (head, ['---'] * len(head)):
        print(f'| {" | ".join(cells)} |')
    for side in args.sides:
        costs = measure(args, side)
        cells = [str(side**2)]
        for seconds, memory in costs:
            cells += [f'{1e3 * seconds:.0f}', f'{memory / 2**20:.0f}']
        cells.append(' '.join(f'{seconds / costs[0][0]:.2f}' for seconds, _ in costs[1:]))
        print(f'| {" | ".join(cells)} |', flush=True)


UNITS = ('ms', 'MiB')


@torch.inference_mode()
def measure(args: argparse.Namespace, side: int) -> list[tuple[float, int]]:
    """Median seconds and peak bytes of a pass of each method."""
    device = torch.device(args.device)
    models = [build(args, name, side) for name in args.methods]
    x = torch.randn(args.batch, 4, 2 * side, 2 * side, device=device)
    t = torch.full((args.batch,), 500, device=device)
    y = torch.zeros(args.batch, dtype=torch.long, device=device)
    first, peaks = [], []
    with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
        for model in models:
            with peak_memory(device) as peak:
                first.append(elapsed(partial(model, x, t, y), device))
            peaks.append(peak())
        # The first pass is a warm-up, unless it is so long that what it warms up does not count.
        rounds = [first] if sum(first) > args.patience else []
        while len(rounds) < args.rounds and sum(map(sum, rounds)) < args.patience:
            runs = (partial(model, x, t, y) for model in models)
            rounds.append([elapsed(run, device) for run in runs])
    return list(zip(map(median, zip(*rounds)), peaks))


def build(args: argparse.Namespace, name: str, side: int) -> DiT:
    """The host with a method, for a grid of tokens."""
    torch.manual_seed(0)
    model = DiT(args.arch, input_size=2 * side, attn_cfg=ARMS[name].attn_cfg)
    return model.to(args.device).eval()


if __name__ == '__main__':
    main()
