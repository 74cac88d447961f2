"""Enlarge images by a trained super-resolution model.

    python tools/restore.py CONFIG CHECKPOINT FOLDER --out-dir enlarged
    python tools/restore.py CONFIG CHECKPOINT FOLDER --out-dir enlarged --truth HR_FOLDER --tile 256

Grey, transparent and 16-bit images stay what they are. Tiles bound the memory that a large image
takes; near their borders the result differs slightly from that of the whole image.
"""

import argparse
from statistics import mean

from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.restoration.inference import load_restorer, restore
from mirrorla_mm.restoration.tiling import OVERLAP


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('source', help='image or folder of images')
    parser.add_argument('--out-dir', default='outputs', help='folder to write to')
    parser.add_argument('--truth', help='folder of ground truths: adds PSNR and SSIM')
    parser.add_argument(
        '--tile', type=int, help='side of a tile, a multiple of the window (default: whole images)'
    )
    parser.add_argument(
        '--overlap', type=int, default=OVERLAP, help='pixels that neighbouring tiles share'
    )
    parser.add_argument(
        '--self-ensemble', action='store_true', help='mean over 8 flips, 8 times as slow'
    )
    parser.add_argument('--device', help='cuda:0 or cpu (default: a GPU where there is one)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        model = load_restorer(args.config, args.checkpoint, args.device)
        results = restore(
            model,
            args.source,
            args.out_dir,
            args.truth,
            tile=args.tile,
            overlap=args.overlap,
            self_ensemble=args.self_ensemble,
        )
        failed = [result['image'] for result in results if 'error' in result]
        done = [result for result in results if 'error' not in result]
        scored = [result for result in done if 'PSNR' in result]
        if scored:
            means = (f'{key} {mean(r[key] for r in scored):.4f}' for key in ('PSNR', 'SSIM'))
            print(f'mean of {len(scored)} images: {", ".join(means)}')
        print(f'{len(done)} images are in {args.out_dir}, with results.json.')
        if failed:
            raise UserError(f'{len(failed)} could not be enlarged: {", ".join(failed)}')
        unscored = [result['image'] for result in done if 'unscored' in result]
        if unscored:
            raise UserError(f'{len(unscored)} have no PSNR and SSIM: {", ".join(unscored)}')


if __name__ == '__main__':
    main()
