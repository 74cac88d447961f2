"""Fig. 3 and 5 of the paper: image, ground truth and the predictions of several models.

    python tools/analysis_tools/compare_segmentations.py a.jpg b.jpg --labels a.png b.png \\
        --models MirrorLA=CONFIG:CHECKPOINT RAVLT=CONFIG:CHECKPOINT --out comparison.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mirrorla_mm.analysis.capture import read_shrunk
from mirrorla_mm.apis import Inferencer
from mirrorla_mm.engine.configs import read_config
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.figures import save_figure

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import Compose
from mmseg.registry import DATASETS

IGNORED = 255
IGNORED_COLOUR = (0, 0, 0)
LEGEND_CLASSES = 24


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', nargs='+', type=Path)
    parser.add_argument('--labels', nargs='+', type=Path, help='label images, in the same order')
    parser.add_argument('--models', nargs='+', required=True, metavar='NAME=CONFIG:CHECKPOINT')
    parser.add_argument('--out', type=Path, default=Path('comparison.png'))
    return parser.parse_args()


def parse_model(text: str) -> tuple[str, str, str]:
    """``NAME=CONFIG:CHECKPOINT`` to its parts.

    Raises:
        UserError: If one is missing.
    """
    name, _, rest = text.partition('=')
    config, _, checkpoint = rest.partition(':')
    if not (name and config and checkpoint):
        raise UserError(f'--models {text!r}: write NAME=CONFIG:CHECKPOINT.')
    return name, config, checkpoint


def label_of(config: str, image: Path, label: Path) -> np.ndarray:
    """A label as the config's data set trains on it: its classes, ignored pixels 255."""
    cfg = read_config(config)
    dataset = cfg.val_dataloader.dataset
    empty = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True, '_scope_': 'mmseg'})
    load = Compose([dict(type='LoadAnnotations', _scope_='mmseg')])
    return load(
        dict(
            img_path=str(image),
            seg_map_path=str(label),
            label_map=empty.label_map,
            reduce_zero_label=empty.reduce_zero_label,
            seg_fields=[],
        )
    )['gt_seg_map']


def coloured(labels: np.ndarray, palette: list) -> np.ndarray:
    """Class indices to colours, ignored pixels black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORED] = IGNORED_COLOUR
    return table[labels]


def accuracy(prediction: np.ndarray, label: np.ndarray) -> float:
    """Share of the labelled pixels that are right."""
    valid = label != IGNORED
    return float((prediction == label)[valid].mean()) if valid.any() else float('nan')


def draw(
    rows: list[list[np.ndarray]], titles: list[str], notes: list[list[str]], meta: dict, out: Path
) -> None:
    """A row an image, a column a model; the classes of ``meta`` underneath."""
    height, width = rows[0][0].shape[:2]
    figure = Figure(
        figsize=(2.6 * len(titles), (2.6 * height / width + 0.25) * len(rows) + 0.8),
        layout='constrained',
    )
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize='medium')
    for axis_row, row, note_row in zip(axes, rows, notes):
        for axis, cell, note in zip(axis_row, row, note_row):
            axis.imshow(cell)
            axis.set_xlabel(note, fontsize='small')
            axis.set(xticks=[], yticks=[])
    if len(meta['classes']) <= LEGEND_CLASSES:
        patches = [Patch(color=np.divide(colour, 255)) for colour in meta['palette']]
        figure.legend(
            patches, meta['classes'], loc='outside lower center', ncols=6, fontsize='small'
        )
    save_figure(figure, out, dpi=80)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        if args.labels and len(args.labels) != len(args.images):
            raise UserError(f'{len(args.images)} images, but {len(args.labels)} labels.')
        parsed = [parse_model(text) for text in args.models]
        models = {n: Inferencer(c, k, device='cpu') for n, c, k in parsed}
        first = next(iter(models.values()))
        meta = dict(classes=first.classes, palette=first.palette)
        titles = ['image', *(['ground truth'] if args.labels else []), *models]
        rows, notes = [], []
        for index, path in enumerate(args.images):
            image = read_shrunk(path)
            row, note = [image[..., ::-1]], [path.name]
            label = None
            if args.labels:
                label = label_of(parsed[0][1], path, args.labels[index])
                row.append(coloured(label, first.palette))
                note.append('')
            for model in models.values():
                prediction = model(image).label_map
                if prediction is None:
                    raise UserError('--models takes segmentors, and one of these is a detector.')
                row.append(coloured(prediction, first.palette))
                right = label is not None and label.shape == prediction.shape
                note.append(f'{accuracy(prediction, label):.1%} right' if right else '')
            rows.append(row)
            notes.append(note)
        draw(rows, titles, notes, meta, args.out)
        print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
