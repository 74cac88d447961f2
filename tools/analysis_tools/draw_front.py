"""Draw the README's image: what the quickstart's models find, and where points of a photo look.

python tools/quickstart.py && python tools/analysis_tools/draw_front.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mirrorla_mm.analysis.attention_maps import attention_rows, token_at
from mirrorla_mm.analysis.capture import capture, chosen_module, load_backbone, normalise
from mirrorla_mm.apis import Inferencer
from mirrorla_mm.demo.dataset import image_name
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.figures import save_figure
from mirrorla_mm.engine.images import read_image
from mirrorla_mm.engine.resuming import find_latest_checkpoint

import cv2
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'quickstart'
DETECTOR = CONFIGS / 'retinanet_mirrorla-xt_fpn_demo.py'
SEGMENTOR = CONFIGS / 'mirrorla-xt_efficientvit-head_demo-160x160.py'
LAYER = 'stages.2.1.attn'
POINTS = ((0.45, 0.4), (0.93, 0.6))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the README's image")
    parser.add_argument('--data-dir', type=Path, default=Path('data/demo'), help="quickstart's")
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'))
    parser.add_argument('--scene', type=int, default=0, help='of the validation set')
    parser.add_argument(
        '--photo', type=Path, default=ROOT / 'docs' / 'tutorials' / 'coffee.jpg', help='any image'
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'figures' / 'front.png')
    return parser.parse_args()


def found(config: Path, work_dir: Path, image: np.ndarray) -> np.ndarray:
    """The image, enlarged for readable labels, with the predictions of a trained model."""
    model = Inferencer(config, find_latest_checkpoint(work_dir))
    return model(image).above(0.5).draw(image)


def attention(config: Path, work_dir: Path, image: np.ndarray) -> np.ndarray:
    """Attention of each of the points, shape (points, h, w), uniform attention being 1."""
    backbone, preprocessor = load_backbone(str(config), find_latest_checkpoint(work_dir))
    captured = capture(backbone, chosen_module(backbone, LAYER), normalise(image, preprocessor))
    rows = attention_rows(captured, [token_at(point, captured.hw_shape) for point in POINTS])
    return (rows * rows.shape[-1]).unflatten(-1, captured.hw_shape).numpy()


def draw(scenes: list[np.ndarray], photo: np.ndarray, maps: np.ndarray, out: Path) -> None:
    """Lay out the scenes, the photo with its points and their attention in a row."""
    height, width = photo.shape[:2]
    ratios = [1, 1, *[width / height] * 3]
    figure = Figure(figsize=(2.5 * sum(ratios), 2.9), layout='constrained')
    axes = figure.subplots(1, 5, width_ratios=ratios)
    titles = ('detector', 'segmentor', 'a photo and two points', 'point 1 looks at', 'point 2')
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=12)
        axis.set_axis_off()
    for axis, scene in zip(axes, scenes):
        axis.imshow(scene[..., ::-1])
    axes[2].imshow(photo[..., ::-1])
    top = np.quantile(maps, 0.99)
    for number, (axis, weights, (x, y)) in enumerate(zip(axes[3:], maps, POINTS), 1):
        box = (0, width, height, 0)
        axis.imshow(photo.mean(-1), cmap='gray', extent=box)
        axis.imshow(
            weights,
            cmap='inferno',
            alpha=0.75,
            vmin=0,
            vmax=top,
            extent=box,
            interpolation='bilinear',
        )
        for place in (axes[2], axis):
            place.plot(x * width, y * height, 'o', color='white', mec='black', ms=13)
            place.text(x * width, y * height, number, ha='center', va='center', fontsize=9)
    save_figure(figure, out, dpi=75)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        folder = args.data_dir / 'leftImg8bit' / 'val'
        scene = read_image(folder / image_name(args.scene))
        scene = cv2.resize(scene, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        scenes = [
            found(config, args.work_dir / task, scene)
            for config, task in ((DETECTOR, 'detector'), (SEGMENTOR, 'segmentor'))
        ]
        photo = read_image(args.photo)
        draw(scenes, photo, attention(SEGMENTOR, args.work_dir / 'segmentor', photo), args.out)
        print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
