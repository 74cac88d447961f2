"""Where chosen points of an image look, for several models side by side.

The N x N attention is never formed: a row costs one backward pass, so full-size images will do.

    python tools/analysis_tools/attention_maps.py street.jpg --points 0.3,0.6 0.8,0.5 \\
        --models MirrorLA=CONFIG:CHECKPOINT softmax=CONFIG:CHECKPOINT --layer stages.1.0.attn
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mirrorla_mm.analysis.attention_maps import attention_rows, token_at
from mirrorla_mm.analysis.capture import (
    capture,
    chosen_module,
    load_backbone,
    normalise,
    read_shrunk,
)
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.figures import save_figure

import torch
from matplotlib.figure import Figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', type=Path)
    parser.add_argument(
        '--models', nargs='+', required=True, metavar='NAME=CONFIG[:CHECKPOINT]', help='columns'
    )
    parser.add_argument(
        '--points', nargs='+', default=['0.5,0.5'], metavar='X,Y', help='rows, each from 0 to 1'
    )
    parser.add_argument('--layer', help='attention module, such as stages.2.0.attn')
    parser.add_argument(
        '--long-side', type=positive_int, help='shrink the image to this, in pixels'
    )
    parser.add_argument('--out', type=Path, default=Path('attention.png'))
    return parser.parse_args()


def parse_point(text: str) -> tuple[float, float]:
    """``0.3,0.6`` to (0.3, 0.6).

    Raises:
        UserError: If it is not two numbers from 0 to 1.
    """
    try:
        x, y = (float(part) for part in text.split(','))
    except ValueError:
        x = y = -1
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UserError(f'--points {text!r}: a point is X,Y with both from 0 (left, top) to 1.')
    return x, y


def parse_model(text: str) -> tuple[str, str, str | None]:
    """``NAME=CONFIG:CHECKPOINT`` to its parts.

    Raises:
        UserError: If there is no name.
    """
    name, separator, rest = text.partition('=')
    if not separator:
        raise UserError(f'--models {text!r}: write NAME=CONFIG or NAME=CONFIG:CHECKPOINT.')
    config, _, checkpoint = rest.partition(':')
    return name, config, checkpoint or None


def maps_of(config: str, checkpoint: str | None, layer: str | None, image, points) -> torch.Tensor:
    """One map a point, shape (points, h, w)."""
    backbone, preprocessor = load_backbone(config, checkpoint)
    captured = capture(backbone, chosen_module(backbone, layer), normalise(image, preprocessor))
    if captured.module.sr_ratio > 1:
        raise UserError(
            'Keys of a spatially reduced layer have no place in the image of their own.'
        )
    rows = attention_rows(captured, [token_at(point, captured.hw_shape) for point in points])
    return rows.unflatten(-1, captured.hw_shape)


def draw(image, points, columns: dict[str, torch.Tensor], out: Path) -> None:
    """A row a point: the image with the point, then each model's map over it in grey."""
    height, width = image.shape[:2]
    grey = image.mean(-1)
    size = (2.6 * (1 + len(columns)) + 0.8, (2.6 * height / width + 0.25) * len(points) + 0.3)
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(points), 1 + len(columns), squeeze=False)
    # Relative to uniform attention, so that a flat map looks flat; one scale for all.
    relative = {name: maps * maps[0].numel() for name, maps in columns.items()}
    top = max(2.0, torch.stack([m.flatten().quantile(0.99) for m in relative.values()]).max())
    for row, (x, y) in zip(axes, points):
        row[0].imshow(image[..., ::-1])
        for axis in row[1:]:
            axis.imshow(grey, cmap='gray')
        for axis in row:
            axis.plot(x * width, y * height, '+', color='white', ms=12, mew=3.5)
            axis.plot(x * width, y * height, '+', color='black', ms=10, mew=1.5)
            axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axes[0, 0].set_title('image and point', fontsize='medium')
    for column, (name, maps) in enumerate(relative.items(), 1):
        axes[0, column].set_title(name, fontsize='medium')
        for axis, weights in zip(axes[:, column], maps):
            overlay = axis.imshow(
                weights,
                extent=(0, width, height, 0),
                cmap='inferno',
                alpha=0.7,
                vmin=0,
                vmax=float(top),
                interpolation='bilinear',
            )
            positive = weights.flatten().clamp_min(0)
            share = positive.topk(max(len(positive) // 20, 1)).values.sum() / positive.sum()
            axis.set_xlabel(f'top 5 % of tokens hold {share:.0%}', fontsize='small')
    figure.colorbar(overlay, ax=axes, label='attention, uniform = 1', shrink=0.8)
    save_figure(figure, out, dpi=70)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        points = [parse_point(text) for text in args.points]
        image = read_shrunk(args.image, args.long_side)
        columns = {}
        for name, config, checkpoint in map(parse_model, args.models):
            columns[name] = maps_of(config, checkpoint, args.layer, image, points)
            print(f'{name}: {columns[name].shape[-2]} x {columns[name].shape[-1]} tokens')
        draw(image, points, columns, args.out)
        print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
