"""Run a detector or segmentor on a picture, a folder of pictures or a video.

python tools/inference.py CONFIG CHECKPOINT SOURCE --out-dir outputs
"""

import argparse

from mirrorla_mm.apis import build_inferencer, predict


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Annotated pictures and JSON from a trained model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('source', help='picture, folder of pictures or video')
    parser.add_argument('--out-dir', default='outputs', help='folder to write to')
    parser.add_argument('--device', help='cuda:0 or cpu (default: a GPU where there is one)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='smallest score of a box')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        inferencer = build_inferencer(args.config, args.checkpoint, args.device)
        results = predict(inferencer, args.source, args.out_dir, args.score_thr)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f'{error}') from None
    print(f'{len(results)} pictures are in {args.out_dir}, with predictions.json beside them.')


if __name__ == '__main__':
    main()
