"""Draw the architecture: the stages of RAVLT, a block of them, and the mirror map.

python tools/analysis_tools/draw_architecture.py [--out docs/figures/architecture.png]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mirrorla_mm.backbones.options import LAYOUTS
from mirrorla_mm.backbones.ravlt import ARCHS
from mirrorla_mm.engine.figures import save_figure
from mirrorla_mm.ops import reflect

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

ROOT = Path(__file__).resolve().parents[2]
INK, SOFT = '#2b2d42', '#8d99ae'
LINEAR, SOFTMAX, CONVOLUTION, OTHER = '#e63946', '#1d78d8', '#f4b41a', '#e9ecef'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the architecture')
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'docs' / 'figures' / 'architecture.png', help='PNG file'
    )
    return parser.parse_args()


def box(
    axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str
) -> None:
    """A rounded box with its text, from its lower left corner."""
    shape = 'round,pad=0,rounding_size=0.12'
    patch = FancyBboxPatch((x, y), width, height, shape, fc=colour, ec=INK, lw=0.9)
    axis.add_patch(patch)
    dark = colour in (LINEAR, SOFTMAX)
    axis.text(
        x + width / 2,
        y + height / 2,
        text,
        ha='center',
        va='center',
        fontsize=8.5,
        color='white' if dark else INK,
        linespacing=1.35,
    )


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    options = dict(arrowstyle='-|>', mutation_scale=10, color=INK, lw=1.1, shrinkA=0, shrinkB=0)
    axis.add_patch(FancyArrowPatch(start, end, **{**options, **style}))


def blank(axis: Axes, width: float, height: float, title: str) -> None:
    axis.set(xlim=(0, width), ylim=(0, height), aspect='equal')
    axis.set_axis_off()
    axis.set_title(title, loc='left', fontsize=11, fontweight='bold', color=INK)


def draw_stages(axis: Axes) -> None:
    """The four stages with the numbers of the archs; the layouts by their colours."""
    blank(axis, 19.6, 5.4, '1. The host: four stages')
    box(axis, 0.1, 2.6, 1.5, 1.4, 'image\nH x W x 3', 'white')
    box(axis, 2.2, 2.6, 2.1, 1.4, 'stem\n4 convolutions\nstride 4', CONVOLUTION)
    arrow(axis, (1.6, 3.3), (2.2, 3.3))
    for stage in range(4):
        left = 4.9 + 3.8 * stage
        arrow(axis, (left - 0.6, 3.3), (left, 3.3))
        if stage:
            axis.text(left - 0.3, 3.75, 'conv\n/2', ha='center', fontsize=7, color=INK)
        kinds = [LAYOUTS[name][stage] for name in ('hybrid', 'linear')]
        box(axis, left, 2.6, 3.0, 1.4, f'stage {stage + 1}\nblocks at stride {4 * 2**stage}', OTHER)
        for i, (name, kind) in enumerate(zip(('hybrid', 'linear'), kinds)):
            colour = LINEAR if kind == 'linear' else SOFTMAX
            box(axis, left + 1.52 * i, 4.2, 1.48, 0.62, kind, colour)
            if not stage:
                axis.text(left + 1.52 * i + 0.74, 4.95, name, ha='center', fontsize=8, color=INK)
        for row, arch in enumerate(('t', 's', 'b')):
            dims, depths = (ARCHS[arch][key][stage] for key in ('embed_dims', 'depths'))
            text = f'{arch.upper()}: {dims} channels, {depths} blocks'
            axis.text(left + 1.5, 2.15 - 0.5 * row, text, ha='center', fontsize=8, color=INK)


def draw_block(axis: Axes) -> None:
    """A block's three residual branches, and the inside of its attention."""
    blank(axis, 12, 8.6, '2. A block')
    rows = (
        ('+ depth-wise conv 3x3', CONVOLUTION),
        ('+ attention', LINEAR),
        ('+ feed-forward, with a\ndepth-wise conv 3x3', OTHER),
    )
    arrow(axis, (1.9, 8.3), (1.9, 7.6))
    for i, (text, colour) in enumerate(rows):
        bottom = 6.4 - 2.6 * i
        box(axis, 0.1, bottom, 3.6, 1.2, text, colour)
        arrow(axis, (1.9, bottom), (1.9, bottom - (1.4 if i < 2 else 0.8)))
    axis.add_patch(Rectangle((4.5, 0.4), 7.4, 7.7, fc='none', ec=SOFT, ls='--', lw=1))
    axis.plot([3.7, 4.5], [5.0, 8.1], color=SOFT, ls='--', lw=1)
    axis.plot([3.7, 4.5], [3.8, 0.4], color=SOFT, ls='--', lw=1)
    box(axis, 4.8, 6.7, 6.8, 1.0, 'project to q, k, v and a gate', OTHER)
    box(axis, 4.8, 4.9, 4.0, 1.1, 'mirror q and k,\nthen ReLU', LINEAR)
    box(axis, 9.2, 2.3, 2.4, 1.3, 'depth-wise\n5x5 of v', CONVOLUTION)
    box(axis, 4.8, 2.3, 4.0, 1.3, r'$\phi(q)\,(\phi(k)^\top v)$' + '\nnormalised, RoPE', LINEAR)
    box(axis, 4.8, 0.7, 6.8, 0.9, 'sum, times the gate, project', OTHER)
    arrow(axis, (6.8, 6.7), (6.8, 6.0))
    arrow(axis, (6.8, 4.9), (6.8, 3.6))
    arrow(axis, (10.4, 6.7), (10.4, 3.6))
    arrow(axis, (6.8, 2.3), (6.8, 1.6))
    arrow(axis, (10.4, 2.3), (10.4, 1.6))


def draw_mirror(axis: Axes) -> None:
    """Two channels of a head: what a ReLU keeps of them, before and after a reflection."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([[0.55, 0.28], [0.1, 0.5]])
    points = torch.randn(90, 2, generator=generator) @ spread + torch.tensor([-0.9, 0.5])
    # The mirror that turns the mean to the diagonal of the orthant.
    x, y = points.mean(0)
    angle = (torch.atan2(y, x) + math.pi / 4 + math.pi) / 2
    mirrored = reflect(points[None, None], angle.view(1, 1), variance_aware=False)[0, 0]
    axis.set(xlim=(-2.6, 2.6), ylim=(-2.0, 2.4), aspect='equal', xticks=[], yticks=[])
    axis.set_title(
        '3. The mirror map, two channels (drawn points)',
        loc='left',
        fontsize=11,
        fontweight='bold',
        color=INK,
    )
    axis.add_patch(Rectangle((0, 0), 3, 3, color='#d8f3dc', zorder=0))
    axis.text(2.5, 2.2, 'what a ReLU keeps', ha='right', va='top', fontsize=8, color='#2d6a4f')
    axis.axhline(0, color=SOFT, lw=0.8, zorder=1)
    axis.axvline(0, color=SOFT, lw=0.8, zorder=1)
    axis.scatter(*points.T, s=14, color=SOFT, label='queries or keys')
    axis.scatter(*mirrored.T, s=14, color=LINEAR, label='mirrored')
    along = torch.stack((-angle.sin(), angle.cos()))
    axis.plot(
        *torch.outer(along, torch.tensor([-2.6, 2.6])),
        color=INK,
        ls='--',
        lw=1.2,
        label='mirror, learned angle',
    )
    axis.legend(fontsize=8, loc='lower right', frameon=False)
    kept = [float((p.clamp_min(0).norm() / p.norm()) ** 2) for p in (points, mirrored)]
    text = f'of the squared length a ReLU keeps\n{kept[0]:.0%} before, {kept[1]:.0%} after'
    axis.text(-2.5, -1.9, text, fontsize=8, color=INK, va='bottom')
    for side in axis.spines.values():
        side.set_color(SOFT)


def main() -> None:
    args = parse_args()
    figure = Figure(figsize=(12, 8.2), layout='constrained')
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.35))
    draw_stages(top.subplots())
    left, right = bottom.subplots(1, 2, width_ratios=(1.35, 1))
    draw_block(left)
    draw_mirror(right)
    save_figure(figure, args.out, dpi=110)
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
