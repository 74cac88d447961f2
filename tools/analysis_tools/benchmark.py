"""Compare latency and peak memory of variants of a model, side by side in one run.

A variant joins words by '+': 'reference' (RAVLT as its authors run it), 'eager', 'deploy', 'bf16'
(deploy mode in bfloat16), 'compile', 'amp' (bfloat16 by autocast), 'onnx' (exported, through
onnxruntime; of a detector the raw head maps). Ratios refer to the first variant of the list.

Examples:
    python tools/analysis_tools/benchmark.py --shapes 800x1280
    python tools/analysis_tools/benchmark.py --train --batch 2 --shapes 256x256 \\
        --variants reference eager
    python tools/analysis_tools/benchmark.py --variants reference deploy onnx \\
        --peers resnet50 swin-t pvtv2-b1 --shapes 512x512 800x1280 --no-memory --plot peers.png
    python tools/analysis_tools/benchmark.py CONFIG --variants eager deploy deploy+amp --plot x.png
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import fields
from datetime import date
from pathlib import Path

from mirrorla_mm.analysis.benchmark import (
    PEERS,
    Subject,
    Timing,
    measure_latency,
    measure_memory,
    with_peers,
)
from mirrorla_mm.analysis.provenance import machine
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import one_line_errors

import torch


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='detector or segmentor; default: the backbone')
    parser.add_argument('--backbone-only', action='store_true', help="the config's backbone alone")
    parser.add_argument('--arch', default='t', help='backbone, where no config is given')
    parser.add_argument('--layout', default='linear', help='its layout')
    parser.add_argument('--variants', nargs='+', default=['reference', 'eager', 'deploy'])
    parser.add_argument(
        '--peers',
        nargs='+',
        default=[],
        choices=sorted(PEERS),
        help='upstream backbones in the same run, through onnxruntime too with an onnx variant',
    )
    parser.add_argument('--shapes', nargs='+', type=shape, default=[(800, 1280)], metavar='HxW')
    parser.add_argument('--train', action='store_true', help='time training steps (backbone)')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='processor time instead of the time that passes, for a machine that others use too',
    )
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--no-memory', action='store_true', help='skip the memory measurement')
    parser.add_argument('--plot', type=Path, help='draw latency and memory over resolution (PNG)')
    parser.add_argument('--json', type=Path, help='save all figures')
    args = parser.parse_args()
    if args.train and args.config and not args.backbone_only:
        parser.error('--train measures a backbone: add --backbone-only or leave the config out')
    try:
        args.variants = with_peers(args.variants, args.peers)
    except ValueError as error:
        parser.error(str(error))
    if (args.train or args.device != 'cpu') and any('onnx' in name for name in args.variants):
        parser.error('an onnx variant is for inference on a CPU')
    return args


def shape(text: str) -> tuple[int, int]:
    """'800x1280' to (800, 1280)."""
    height, width = text.lower().split('x')
    return int(height), int(width)


@one_line_errors()
def main() -> None:
    """Measure, print a Markdown table, save and draw."""
    args = parse_args()
    usable_device(args.device)
    subject = Subject(**{field.name: getattr(args, field.name) for field in fields(Subject)})
    torch.set_num_threads(args.threads)
    command = shlex.join(['python', *sys.argv])
    print(f'{date.today()}, {machine()}\n`{command}`\n')
    print('| size | variant | latency | images/s | ratio (quartiles) | step memory | process |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    rows = []
    for size in args.shapes:
        for timing in measure_latency(subject, args.variants, size, args.rounds):
            memory = None if args.no_memory else measure_memory(subject, timing.variant, size)
            rows.append((timing, memory))
            print(table_row(timing, memory, args.batch), flush=True)
    if args.json:
        args.json.write_text(json.dumps([as_dict(*row) for row in rows], indent=1))
    if args.plot:
        draw(rows, args.plot)


def table_row(timing: Timing, memory: tuple[float, float] | None, batch: int) -> str:
    """One row of the table."""
    ratio, low, high = timing.ratio()
    step, process = ('', '') if memory is None else (f'{value:.0f} MiB' for value in memory)
    cells = (
        '{}x{}'.format(*timing.shape),
        timing.variant,
        f'{timing.latency * 1e3:.0f} ms',
        f'{batch / timing.latency:.2f}',
        f'{ratio:.3f} ({low:.3f} to {high:.3f})',
        step,
        process,
    )
    return f'| {" | ".join(cells)} |'


def as_dict(timing: Timing, memory: tuple[float, float] | None) -> dict:
    """Columns of one row that ``--json`` saves."""
    step, process = memory or (None, None)
    return {**vars(timing), 'step_mib': step, 'process_mib': process}


def draw(rows: list[tuple[Timing, tuple[float, float] | None]], file: Path) -> None:
    """Latency and, where measured, memory of each variant over the number of pixels."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = [('latency (ms)', lambda timing, _: timing.latency * 1e3)]
    if rows[0][1] is not None:
        panels.append(('peak memory of a step (MiB)', lambda _, memory: memory[0]))
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, (label, value) in zip(axes[0], panels):
        for variant in dict.fromkeys(timing.variant for timing, _ in rows):
            points = sorted(
                (timing.shape[0] * timing.shape[1] / 1e6, value(timing, memory))
                for timing, memory in rows
                if timing.variant == variant
            )
            axis.plot(*zip(*points), marker='o', label=variant)
        axis.set(xlabel='megapixels', ylabel=label, xscale='log', yscale='log')
        axis.grid(True, which='both', alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == '__main__':
    main()
