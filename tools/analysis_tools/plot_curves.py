"""Overlay the loss and a metric of several runs.

python tools/analysis_tools/plot_curves.py work_dirs/a work_dirs/b --metric mIoU --out curves.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mirrorla_mm.analysis.curves import Curves, chosen_metric, read_curves
from mirrorla_mm.engine.errors import one_line_errors

from matplotlib.figure import Figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dirs', nargs='+', type=Path)
    parser.add_argument('--metric', help='mIoU or mAP by default')
    parser.add_argument('--names', nargs='+', help='of the runs; folder names by default')
    parser.add_argument('--out', type=Path, default=Path('curves.png'))
    return parser.parse_args()


def draw(runs: list[Curves], metric: str | None, out: Path) -> None:
    """Loss on the left, the metric on the right."""
    figure = Figure(figsize=(10 if metric else 5.5, 3.6), layout='constrained')
    axes = figure.subplots(1, 2 if metric else 1, squeeze=False)[0]
    for run in runs:
        axes[0].plot(*zip(*sorted(run.loss.items())), label=run.name)
        if metric and run.metrics.get(metric):
            axes[1].plot(*zip(*sorted(run.metrics[metric].items())), 'o-', label=run.name)
    axes[0].set(xlabel='iteration', ylabel='loss')
    if metric:
        axes[1].set(xlabel='iteration', ylabel=metric)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
        axis.legend(fontsize='small')
    figure.savefig(out, dpi=90)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        runs = [read_curves(work_dir) for work_dir in args.work_dirs]
        for run, name in zip(runs, args.names or []):
            run.name = name
        draw(runs, chosen_metric(runs, args.metric), args.out)
        print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
