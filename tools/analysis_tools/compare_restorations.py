"""Draw enlarged images beside each other: bicubic, each model, ground truth, with a zoomed crop.

The results are folders that tools/restore.py wrote. Example:

    python tools/analysis_tools/compare_restorations.py Set5/LR_bicubic/X4 Set5/HR \\
        --results LSA=enlarged/lsa MirrorLA=enlarged/mirrorla --out-dir comparisons
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.images import read_image
from mirrorla_mm.restoration.figure import compare_images
from mirrorla_mm.restoration.inference import image_files, require_other_folder, truths_of

import numpy as np
from rich.progress import track


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', type=Path, help='low-resolution image or folder of them')
    parser.add_argument('truth', type=Path, help='folder of ground truths')
    parser.add_argument(
        '--results', nargs='+', default=[], metavar='LABEL=FOLDER', help='enlarged images'
    )
    parser.add_argument('--scale', type=positive_int, default=4, help='factor between the two')
    parser.add_argument(
        '--size', type=positive_int, default=64, help='side of the crop, of the truth'
    )
    parser.add_argument(
        '--out-dir', type=Path, default=Path('comparisons'), help='folder to write to'
    )
    return parser.parse_args()


def rgb(path: Path) -> np.ndarray:
    """Read an image as RGB."""
    return read_image(path)[..., ::-1]


def draw(args: argparse.Namespace, file: Path, truth_file: Path) -> None:
    """Draw the comparison of one image."""
    image = rgb(file)
    height, width = (n * args.scale for n in image.shape[:2])
    truth = rgb(truth_file)[:height, :width]
    results = {label: rgb(folder / f'{file.stem}.png') for label, folder in args.results.items()}
    for label, panel in {'the ground truth': truth, **results}.items():
        if panel.shape[:2] != (height, width):
            raise UserError(
                f'{label} of {file} has {panel.shape[1]}x{panel.shape[0]} pixels, not '
                f'{width}x{height}.'
            )
    target = args.out_dir / f'{file.stem}.png'
    compare_images(target, truth, image, results, args.size, file.stem)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        if not all('=' in result for result in args.results):
            raise UserError('--results takes LABEL=FOLDER, such as MirrorLA=enlarged/mirrorla.')
        args.results = {
            label: Path(folder) for label, folder in (x.split('=', 1) for x in args.results)
        }
        files = image_files(args.images)
        require_other_folder(args.out_dir, [files[0].parent, args.truth, *args.results.values()])
        truths = truths_of(files, args.truth, args.scale)
        for pair in track(list(zip(files, truths)), 'Drawing'):
            draw(args, *pair)
    print(f'{len(files)} comparisons are in {args.out_dir}.')


if __name__ == '__main__':
    main()
