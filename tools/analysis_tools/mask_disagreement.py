"""Theorem 3.1 as an experiment: mask disagreement of random clusters as their variance vanishes.

    python tools/analysis_tools/mask_disagreement.py --out mask_disagreement.png

The tighter clusters are, the fewer of them lie near a boundary, and the more are drawn.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mirrorla_mm.analysis.theorem_3_1 import WITHIN_MARGIN, Clusters, many_clusters
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.figures import save_figure

import torch
from matplotlib.figure import Figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--clusters',
        type=positive_int,
        default=4096,
        help='of a round; tight clusters take several',
    )
    parser.add_argument('--tokens', type=positive_int, default=64, help='tokens of a cluster')
    parser.add_argument('--lam', type=float, default=1.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('mask_disagreement.png'))
    args = parser.parse_args()
    if args.tokens < 2:
        parser.error('--tokens: a cluster has pairs from 2 tokens on')
    return args


def draw(sigmas: list[float], runs: dict[str, list[Clusters]], out: Path) -> None:
    """Disagreement against variance, its ratio to distance, and one cluster a dot."""
    figure = Figure(figsize=(12, 3.6), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    variances = [sigma**2 for sigma in sigmas]
    # Narrower and narrower, so that curves on top of each other can all be seen.
    for (name, clusters), width in zip(runs.items(), (6, 3.5, 1.2)):
        left.loglog(variances, [c.disagreement.mean() for c in clusters], lw=width, label=name)
        colour = left.lines[-1].get_color()
        for line, parts in (('--', [c.near for c in clusters]), (':', [~c.near for c in clusters])):
            means = [
                c.disagreement[part].mean() if part.sum() > 20 else math.nan
                for c, part in zip(clusters, parts)
            ]
            left.loglog(variances, means, line, color=colour, lw=width)
        middle.loglog(variances, [c.constant() for c in clusters], lw=width, label=name)
    left.set(
        xlabel='σ²',
        ylabel='bits of 2 that differ',
        title=f'all (—), margin < {WITHIN_MARGIN:g}σ (- -), others (···)',
    )
    middle.set(
        xlabel='σ²', ylabel='bits of 2 per unit of distance', title='disagreement / distance'
    )
    left.legend(fontsize='small')
    middle.legend(fontsize='small')
    name, clusters = next(iter(runs.items()))
    fewest = min(len(cluster.margin) for cluster in clusters)
    for sigma, cluster in list(zip(sigmas, clusters))[:: max(len(sigmas) // 4, 1)]:
        right.semilogx(
            cluster.margin[:fewest],
            cluster.disagreement[:fewest],
            '.',
            ms=2,
            label=f'σ = {sigma:.3g}',
        )
    right.axvline(WITHIN_MARGIN, color='black', lw=0.8)
    right.set(
        xlabel='margin of the mean / σ',
        ylabel='bits of 2 that differ',
        title=f'each cluster, {name}',
        xlim=(1e-3, 1e3),
    )
    right.legend(fontsize='x-small', markerscale=5)
    save_figure(figure, out, dpi=90)


def main() -> None:
    args = parse_args()
    sigmas = torch.logspace(-3, 1, 17).tolist()
    runs = {
        name: [
            many_clusters(
                sigma,
                modulated=modulated,
                count=args.clusters,
                tokens=args.tokens,
                lam=args.lam,
                alpha_max=alpha_max,
                seed=args.seed,
            )
            for sigma in sigmas
        ]
        for name, modulated, alpha_max in (
            ('α = π/2', True, math.pi / 2),
            ('α = π/8', True, math.pi / 8),
            ('without modulation', False, 0.0),
        )
    }
    print(
        'bits of 2 that differ: all clusters, near a boundary, the others; share and number of the '
        'near ones; bits per unit of distance, over all'
    )
    for name, clusters in runs.items():
        print(name)
        for sigma, c in zip(sigmas, clusters):
            parts = (torch.ones_like(c.near), c.near, ~c.near)
            means = [f'{c.disagreement[p].mean():8.5f}' if p.any() else '       -' for p in parts]
            print(
                f'  σ² = {sigma**2:5.0e}  {" ".join(means)}  {c.near.double().mean():7.2%}  '
                f'{c.near.sum():5} of {len(c.near):6}  {c.constant():.3f}'
            )
    draw(sigmas, runs, args.out)
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
