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
from dataclasses import fields
from pathlib import Path

from mirrorla_mm.analysis.benchmark import (
    PEERS,
    Subject,
    Timing,
    measure_latency,
    measure_memory,
    with_peers,
)
from mirrorla_mm.analysis.benchmark_plot import Memory, draw
from mirrorla_mm.analysis.provenance import heading, machine, provenance
from mirrorla_mm.backbones.options import LAYOUTS
from mirrorla_mm.backbones.ravlt import ARCHS
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.atomic import whole_file
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.settings import refuse_others

import torch

# What is noted of each size; the machine is that of the settings.
NOTED = ('date', 'commit')
Made = dict[tuple[int, int], dict[str, str | None]]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='detector or segmentor; default: the backbone')
    parser.add_argument('--backbone-only', action='store_true', help="the config's backbone alone")
    parser.add_argument(
        '--arch', choices=tuple(ARCHS), default='t', help='backbone, where no config is given'
    )
    parser.add_argument('--layout', choices=tuple(LAYOUTS), default='linear', help='its layout')
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
    parser.add_argument('--batch', type=positive_int, default=1)
    parser.add_argument('--rounds', type=positive_int, default=10)
    parser.add_argument('--threads', type=positive_int, default=torch.get_num_threads())
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='processor time instead of the time that passes, for a machine that others use too',
    )
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--no-memory', action='store_true', help='skip the memory measurement')
    parser.add_argument('--plot', type=Path, help='draw latency and memory over resolution (PNG)')
    parser.add_argument('--json', type=Path, help='save all figures, after each size')
    parser.add_argument(
        '--resume', action='store_true', help='measure only the sizes that --json lacks'
    )
    args = parser.parse_args()
    if args.resume and not args.json:
        parser.error('--resume needs --json, the file to go on with')
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
    height, width = map(positive_int, text.lower().split('x'))
    return height, width


@one_line_errors()
def main() -> None:
    """Measure, print a Markdown table, save and draw."""
    args = parse_args()
    usable_device(args.device)
    subject = Subject(**{field.name: getattr(args, field.name) for field in fields(Subject)})
    torch.set_num_threads(args.threads)
    print(heading())
    print('| size | variant | latency | images/s | ratio (quartiles) | step memory | process |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    settings = {**vars(subject), 'variants': args.variants, 'rounds': args.rounds}
    settings['machine'] = machine()
    settings['memory'] = not args.no_memory
    rows, made = load(args.json, settings) if args.resume else ([], {})
    for timing, memory in rows:
        print(table_row(timing, memory, args.batch))
    now = provenance()
    for size in args.shapes:
        if size in made:
            continue
        made[size] = {key: now[key] for key in NOTED}
        for timing in measure_latency(subject, args.variants, size, args.rounds):
            memory = None if args.no_memory else measure_memory(subject, timing.variant, size)
            rows.append((timing, memory))
            print(table_row(timing, memory, args.batch), flush=True)
        if args.json:
            save(args.json, settings, rows, made)
    if args.plot:
        draw(rows, args.plot, ', '.join([machine(), *dates(made)]))


def table_row(timing: Timing, memory: Memory, batch: int) -> str:
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


def dates(made: Made) -> list[str]:
    """The days of the measurement; none where that of a size is not known."""
    found = {each['date'] for each in made.values()}
    return [] if None in found else sorted(found)


def as_dict(timing: Timing, memory: Memory) -> dict:
    """Columns of one row that ``--json`` saves."""
    step, process = memory or (None, None)
    return {**vars(timing), 'step_mib': step, 'process_mib': process}


def save(file: Path, settings: dict, rows: list[tuple[Timing, Memory]], made: Made) -> None:
    """Write what was measured so far, complete or not at all."""
    columns = [{**as_dict(timing, memory), **made[timing.shape]} for timing, memory in rows]
    saved = dict(settings=settings, rows=columns)
    with whole_file(file) as place:
        place.write_text(json.dumps(saved, indent=1))


def load(file: Path, settings: dict) -> tuple[list[tuple[Timing, Memory]], Made]:
    """The sizes that an earlier run with the same settings has saved, or none, and their making.

    Raises:
        UserError: If the file is of another run.
    """
    if not file.exists():
        return [], {}
    try:
        saved = json.loads(file.read_text())
        noted = dict(saved['settings'])
        made = {
            tuple(row['shape']): {key: row.pop(key, None) for key in NOTED} for row in saved['rows']
        }
        rows = [from_dict(row) for row in saved['rows']]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{file} was not saved by this tool: name another file.') from error
    refuse_others(noted, settings, file, 'name another --json')
    return rows, made


def from_dict(row: dict) -> tuple[Timing, Memory]:
    """The row that :func:`as_dict` has made columns of."""
    step, process = row.pop('step_mib'), row.pop('process_mib')
    timing = Timing(**{**row, 'shape': tuple(row['shape'])})
    return timing, None if step is None else (step, process)


if __name__ == '__main__':
    main()
