"""Fig. 1 of the paper for an image of yours: what each feature map keeps of the attention.

Each panel shows the first three principal components of softmax(phi(Q) phi(K)^T) of one head as a
colour at every token. Colours are scaled by one constant for all panels, so a panel that is grey
has little left to tell.

    python tools/analysis_tools/feature_topology.py street.jpg --config CONFIG --checkpoint FILE \\
        --layer stages.2.0.attn --out topology.png
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
from mirrorla_mm.analysis.topology import Topology, paradigms
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.figures import save_figure

import torch
from matplotlib.figure import Figure

MAX_TOKENS = 4096
PANELS = ('(a) identity', '(a) plain reflection', '(b) ReLU', '(c) ReLU after reflection')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', type=Path)
    parser.add_argument('--config', required=True)
    parser.add_argument('--checkpoint', help='random weights without it')
    parser.add_argument('--layer', help='attention module, such as stages.2.0.attn')
    parser.add_argument('--head', type=int, default=0)
    parser.add_argument(
        '--long-side', type=positive_int, help='shrink the image to this, in pixels'
    )
    parser.add_argument('--out', type=Path, default=Path('topology.png'))
    return parser.parse_args()


def draw(image, panels: list[Topology], hw_shape: tuple[int, int], title: str, out: Path) -> None:
    """The image and the four panels, numbers underneath."""
    unit = 3 * panels[0].components[:, 0].std().clamp_min(1e-12)
    figure = Figure(figsize=(14, 3.6), layout='constrained')
    axes = figure.subplots(1, 5)
    axes[0].imshow(image[..., ::-1])
    axes[0].set_title('image')
    for axis, label, panel in zip(axes[1:], PANELS, panels):
        colours = (panel.components / unit / 2 + 0.5).clamp(0, 1).unflatten(0, hw_shape)
        axis.imshow(colours.numpy(), interpolation='nearest')
        axis.set_title(label)
        axis.set_xlabel(
            f'dead dimensions {panel.dead:.0%}\n'
            f'zero entries {panel.zero:.0%}\n'
            f'effective rank {panel.rank:.2f}\n'
            f'entropy / log N {panel.entropy:.4f}\n'
            f'mask disagreement {panel.disagreement:.3f}',
            fontsize='small',
        )
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize='medium')
    save_figure(figure, out, dpi=80)


@torch.no_grad()
def main() -> None:
    args = parse_args()
    with one_line_errors():
        backbone, preprocessor = load_backbone(args.config, args.checkpoint)
        module = chosen_module(backbone, args.layer)
        image = read_shrunk(args.image, args.long_side)
        captured = capture(backbone, module, normalise(image, preprocessor))
        tokens = captured.x.shape[1]
        if tokens > MAX_TOKENS:
            raise UserError(
                f'This layer sees {tokens} tokens and the figure needs all their attention: '
                f'choose a deeper --layer or a smaller --long-side (at most {MAX_TOKENS} tokens).'
            )
        if not 0 <= args.head < module.num_heads:
            raise UserError(
                f'--head {args.head}: this layer has heads 0 to {module.num_heads - 1}.'
            )
        q, k = captured.raw_queries_and_keys()
        panels = paradigms(q, k, reflection_of(module), args.head)
        layer = args.layer or 'first attention'
        title = f'{args.image.name}, {layer}, head {args.head}, {tokens} tokens'
        draw(image, panels, captured.hw_shape, title, args.out)
        for panel in panels:
            print(
                f'{panel.label:22} dead {panel.dead:6.1%}  zero {panel.zero:6.1%}  '
                f'effective rank {panel.rank:7.2f}  entropy {panel.entropy:.4f}  '
                f'mask disagreement {panel.disagreement:.3f}'
            )
        print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
