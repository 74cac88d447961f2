"""Run a detector or segmentor on an image, a folder of images or a video.

python tools/inference.py CONFIG CHECKPOINT SOURCE --out-dir outputs

The same from Python:

    from mirrorla_mm.apis import Inferencer, predict

    model = Inferencer('config.py', 'epoch_12.pth')
    found = model('street.jpg').above(0.5)           # a file, or a BGR array
    print(found.names, found.scores, found.boxes)    # of a segmentor found.label_map
    predict(model, 'photos', 'outputs', tell=print)  # as this tool does
"""

import argparse

from mirrorla_mm.apis import Inferencer, predict
from mirrorla_mm.engine.configs import ConfigOptions
from mirrorla_mm.engine.errors import UserError, one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or mmdet::NAME or mmseg::NAME')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('source', help='image, folder of images with its subfolders, or video')
    parser.add_argument('--out-dir', default='outputs', help='folder to write to')
    parser.add_argument('--device', help='cuda:0 or cpu (default: a GPU where there is one)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='smallest score of a box')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='override settings of the config'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        model = Inferencer(args.config, args.checkpoint, args.device, args.cfg_options)
        results = predict(model, args.source, args.out_dir, args.score_thr, tell=print)
        failed = [result['image'] for result in results if 'error' in result]
        print(f'{len(results) - len(failed)} images are in {args.out_dir}, with predictions.json.')
        if failed:
            raise UserError(f'{len(failed)} could not be predicted: {", ".join(failed)}')


if __name__ == '__main__':
    main()
