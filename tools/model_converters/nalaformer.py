"""Convert a NaLaFormer checkpoint.

python tools/model_converters/nalaformer.py NALAFORMER_T.pth nalaformer-t.pth
"""

import argparse
import functools

from mirrorla_mm.backbones.options import LAYOUTS
from mirrorla_mm.converters import convert_file, convert_nalaformer, report
from mirrorla_mm.engine.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Convert a NaLaFormer checkpoint')
    parser.add_argument('src', help='official file of a classifier')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--layout', choices=tuple(LAYOUTS), default='hybrid', help='layout of the backbone'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        converted = convert_file(
            functools.partial(convert_nalaformer, layout=args.layout), args.src, args.dst
        )
        print(report(converted, args.dst))


if __name__ == '__main__':
    main()
