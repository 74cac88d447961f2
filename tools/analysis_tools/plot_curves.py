"""Overlay loss and metrics of several runs, detectors and segmentors alike.

python tools/analysis_tools/plot_curves.py work_dirs/a work_dirs/b --metric mIoU --out curves.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mirrorla_mm.analysis.curves import Curves, chosen_metrics, read_curves
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.figures import save_figure

from matplotlib.figure import Figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dirs', nargs='+', type=Path)
    parser.add_argument('--metric', help="each task's own by default: box mAP, mIoU, PSNR")
    parser.add_argument(
        '--names',
        nargs='+',
        help='of the runs; folder names by default, or paths where those are alike',
    )
    parser.add_argument('--out', type=Path, default=Path('curves.png'))
    return parser.parse_args()


def draw(runs: list[Curves], metrics: list[str], out: Path) -> None:
    """Loss on the left, then a panel for each metric with the runs that have it."""
    panels = 1 + len(metrics)
    figure = Figure(figsize=(0.5 + 5 * panels, 3.6), layout='constrained')
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for i, run in enumerate(runs):
        axes[0].plot(*zip(*sorted(run.loss.items())), color=f'C{i}', label=run.name)
        for axis, metric in zip(axes[1:], metrics):
            if run.metrics.get(metric):
                points = zip(*sorted(run.metrics[metric].items()))
                axis.plot(*points, 'o-', color=f'C{i}', label=run.name)
    for axis, name in zip(axes, ('loss', *metrics)):
        axis.set(xlabel='iteration', ylabel=name)
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
        axis.legend(fontsize='small')
    save_figure(figure, out, dpi=90)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        runs = [read_curves(work_dir) for work_dir in args.work_dirs]
        alike = len({run.name for run in runs}) < len(runs)  # a/detector and b/detector
        for run, name in zip(runs, args.names or (map(str, args.work_dirs) if alike else ())):
            run.name = name
        draw(runs, chosen_metrics(runs, args.metric), args.out)
        print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
