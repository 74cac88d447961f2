"""Convert an official FLatten or PolaFormer checkpoint in Swin or PVT.

python tools/model_converters/swin_pvt.py pola_swin_t.pth pola-swin-t.pth
"""

import argparse
import functools

from mirrorla_mm.converters import convert_file, convert_swin_pvt, report
from mirrorla_mm.engine.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Convert an official FLatten or PolaFormer checkpoint'
    )
    parser.add_argument('src', help='official file of a classifier')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--focusing-factor', type=float, default=3, help='of FLatten (default %(default)s)'
    )
    parser.add_argument(
        '--alpha', type=float, default=4, help='of PolaFormer (default %(default)s)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        converted = convert_file(
            functools.partial(
                convert_swin_pvt, focusing_factor=args.focusing_factor, alpha=args.alpha
            ),
            args.src,
            args.dst,
        )
        print(report(converted, args.dst))


if __name__ == '__main__':
    main()
