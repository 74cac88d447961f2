"""Side-by-side figures of what a model saw, what it should have found and what it found."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from ..engine.figures import save_figure
from .dataset import image_name, label_name
from .scenes import BACKGROUND, CLASSES, PALETTE
from .tally import read_boxes

COLOURS = np.array(PALETTE) / 255
COLUMNS = ('image', 'ground truth', 'prediction')
SCENES_PER_ROW = 2
OVERLAY = 0.75
"""Opacity of the classes in a label map that is laid over its image."""


def detection_figure(data: Path, results: Path, scenes: Sequence[int], target: Path) -> None:
    """Tile scenes of the validation set with their true and their predicted boxes.

    Args:
        data: directory that :func:`mirrorla_mm.demo.dataset.draw_dataset` filled.
        results: predictions in COCO's result format, as ``CocoMetric`` writes them.
        scenes: indices of the validation scenes to show.
        target: PNG file to write.
    """
    truth, boxes = read_boxes(data, results)

    def draw(axes: Sequence[Axes], scene: int) -> None:
        for axis in axes:
            axis.imshow(_read_image(data, scene))
        _draw_boxes(axes[1], truth[scene])
        _draw_boxes(axes[2], boxes[scene])

    _tile(scenes, draw, 'Detection', _legend(CLASSES, COLOURS[1:]), target)


def segmentation_figure(data: Path, results: Path, scenes: Sequence[int], target: Path) -> None:
    """Tile scenes of the validation set with their true and their predicted label maps.

    Args:
        data: directory that :func:`mirrorla_mm.demo.dataset.draw_dataset` filled.
        results: directory of label maps, as ``IoUMetric`` writes them.
        scenes: indices of the validation scenes to show.
        target: PNG file to write.
    """

    def draw(axes: Sequence[Axes], scene: int) -> None:
        image = _read_image(data, scene)
        grey = image.mean(axis=2, keepdims=True) / 255
        truth = _read(data / 'gtFine' / 'val' / label_name(scene))
        predicted = _read(results / Path(image_name(scene)).name)
        axes[0].imshow(image)
        for axis, label_map in zip(axes[1:], (truth, predicted), strict=True):
            axis.imshow((1 - OVERLAY) * grey + OVERLAY * COLOURS[label_map])

    _tile(scenes, draw, 'Segmentation', _legend((BACKGROUND, *CLASSES), COLOURS), target)


def _read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def _read_image(data: Path, scene: int) -> np.ndarray:
    return _read(data / 'leftImg8bit' / 'val' / image_name(scene))


def _draw_boxes(axis: Axes, boxes: Sequence[dict]) -> None:
    """Draw COCO boxes in their class's colour, with name and, where there is one, score.

    High scores lie over low ones.
    """
    outline = [effects.withStroke(linewidth=3.5, foreground='white')]
    for box in sorted(boxes, key=lambda box: box.get('score', 1)):
        x, y, width, height = box['bbox']
        colour = COLOURS[box['category_id']]
        axis.add_patch(
            Rectangle((x, y), width, height, fill=False, color=colour, lw=2, path_effects=outline)
        )
        score = f' {box["score"]:.2f}' if 'score' in box else ''
        axis.text(
            max(x, 1),
            max(y, 9),
            CLASSES[box['category_id'] - 1] + score,
            color='white',
            fontsize=7.5,
            va='bottom',
            bbox=dict(facecolor=colour, edgecolor='none', pad=1.2),
            clip_on=True,
        )


def _legend(names: Sequence[str], colours: np.ndarray) -> list[Patch]:
    return [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]


def _tile(scenes: Sequence[int], draw, title: str, legend: list[Patch], target: Path) -> None:
    """Lay scenes out in rows of two, three columns each, and save them.

    ``draw(axes, scene)`` draws a scene into its three axes.
    """
    rows = -(-len(scenes) // SCENES_PER_ROW)
    figure = Figure(figsize=(2.3 * 3 * SCENES_PER_ROW, 2.3 * rows + 1.0), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=16, fontweight='bold')
    figure.legend(
        handles=legend, loc='outside lower center', ncols=len(legend), fontsize=11, frameon=False
    )
    blocks = figure.subfigures(1, SCENES_PER_ROW, wspace=0.02)
    for column, block in enumerate(blocks):
        grid = block.subplots(rows, 3, squeeze=False)
        for axis, name in zip(grid[0], COLUMNS, strict=True):
            axis.set_title(name, fontsize=12)
        for axis in grid.flat:
            axis.set_axis_off()
        for axes, scene in zip(grid, scenes[column::SCENES_PER_ROW]):
            draw(axes, scene)
            for axis in axes:
                axis.set(xlim=(-0.5, axis.get_xlim()[1]), ylim=(axis.get_ylim()[0], -0.5))
    save_figure(figure, target, dpi=110)
