"""Publish a checkpoint: without its training state, with a hash in its name.

python tools/model_converters/publish.py work_dirs/NAME/epoch_12.pth NAME.safetensors
"""

import argparse

from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.publishing import WEIGHTS, publish


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Publish a checkpoint')
    parser.add_argument('src', help='checkpoint of a training')
    parser.add_argument('dst', help='NAME.pth or NAME.safetensors; the file becomes NAME-HASH')
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        help='the running averages of EMAHook, or the weights that they are averages of '
        '(default: the averages where there are some)',
    )
    return parser.parse_args()


def main() -> None:
    """Publish."""
    args = parse_args()
    with one_line_errors():
        print(f'Published as {publish(args.src, args.dst, args.weights)}')


if __name__ == '__main__':
    main()
