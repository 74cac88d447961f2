"""Eq. 19 of the paper: what the cross-head reflection does to the covariance of the heads.

Without an image, independent heads are drawn, one of them nearly silent. With one, the queries of
a layer are taken, before its own reflection and after.

    python tools/analysis_tools/covariance_mixing.py --out mixing.png
    python tools/analysis_tools/covariance_mixing.py --image street.jpg --config CONFIG \\
        --checkpoint FILE --layer stages.2.0.attn --out mixing.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mirrorla_mm.analysis.capture import (
    capture,
    chosen_module,
    load_backbone,
    normalise,
    read_shrunk,
    reflection_of,
)
from mirrorla_mm.analysis.covariance import Mixing, independent_heads, mixing
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.figures import save_figure

import torch
from matplotlib.figure import Figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--image', type=Path)
    parser.add_argument('--config', help='needed with --image')
    parser.add_argument('--checkpoint')
    parser.add_argument('--layer')
    parser.add_argument('--heads', type=positive_int, default=8, help='of the drawn tokens')
    parser.add_argument('--head-dim', type=positive_int, default=16, help='of the drawn tokens')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('covariance_mixing.png'))
    return parser.parse_args()


def drawn(args: argparse.Namespace) -> Mixing:
    """Independent heads and a random mirror vector, as at the start of training."""
    u = torch.randn(
        args.heads * args.head_dim, generator=torch.Generator().manual_seed(args.seed + 1)
    )
    return mixing(independent_heads(args.heads, args.head_dim, seed=args.seed), u, args.heads)


@torch.no_grad()
def measured(args: argparse.Namespace) -> Mixing:
    """The queries of a layer for an image, and the layer's own mirror vector."""
    if not args.config:
        raise UserError('--image needs --config.')
    backbone, preprocessor = load_backbone(args.config, args.checkpoint)
    module = chosen_module(backbone, args.layer)
    u = reflection_of(module, args.seed).u
    if u is None:
        raise UserError('This layer was trained without a cross-head reflection.')
    inputs = normalise(read_shrunk(args.image), preprocessor)
    q, _ = capture(backbone, module, inputs).raw_queries_and_keys()
    return mixing(q[0].transpose(0, 1).flatten(1), u, module.num_heads)


def draw(result: Mixing, out: Path) -> None:
    """Both covariances, the spectra and the variance of each head."""
    figure = Figure(figsize=(14, 3.6), layout='constrained')
    axes = figure.subplots(1, 4)
    limit = result.before.abs().quantile(0.99).clamp_min(1e-12).item()
    mass = result.diagonal_mass()
    for axis, name, m, share in zip(axes, ('before', 'after'), (result.before, result.after), mass):
        colours = axis.imshow(m, cmap='RdBu', vmin=-limit, vmax=limit)
        axis.set(title=f'{name}: {share:.1%} in own blocks', xlabel='channel', xticks=[], yticks=[])
    figure.colorbar(colours, ax=axes[1], label='covariance', shrink=0.85)
    for m, style in ((result.before, 'o'), (result.after, 'x')):
        axes[2].semilogy(torch.linalg.eigvalsh(m).flip(0).clamp_min(1e-12), style, ms=4)
    axes[2].set(
        title=f'spectrum, changed by {result.spectrum_error():.0e}',
        xlabel='number of the eigenvalue',
        ylabel='eigenvalue',
    )
    heads = torch.arange(result.num_heads)
    for offset, share in zip((-0.2, 0.2), result.head_variance()):
        axes[3].bar(heads + offset, share, width=0.4)
    axes[3].set(title='variance of the heads', xlabel='head', ylabel='share of all', yscale='log')
    axes[3].set_xticks(heads)
    axes[2].legend(('before', 'after'), fontsize='small', loc='lower left')
    save_figure(figure, out, dpi=80)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        result = measured(args) if args.image else drawn(args)
        before, after = result.diagonal_mass()
        print(f"mass in the heads' own blocks: {before:.2%} before, {after:.2%} after")
        print(f'largest change of an eigenvalue: {result.spectrum_error():.1e} of the largest')
        for name, share in zip(('before', 'after'), result.head_variance()):
            print(f'variance of the heads {name}: {", ".join(f"{s:.2%}" for s in share.tolist())}')
        draw(result, args.out)
        print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
