"""Convert an official RAVLT checkpoint to RAVLT, or to MirrorLA as a warm start.

python tools/model_converters/ravlt.py RAVLT_T.pth mirrorla-t.pth --to MirrorLA
"""

import argparse
import functools

from mirrorla_mm.backbones.options import LAYOUTS
from mirrorla_mm.converters import convert_file, convert_ravlt, report
from mirrorla_mm.engine.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Convert an official RAVLT checkpoint')
    parser.add_argument('src', help='official file: classifier, dense backbone or whole detector')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument('--to', choices=('RAVLT', 'MirrorLA'), default='RAVLT', help='the backbone')
    parser.add_argument(
        '--layout', choices=tuple(LAYOUTS), default='hybrid', help='layout of the backbone'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help="of the reflections' initial values, for MirrorLA"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        converted = convert_file(
            functools.partial(convert_ravlt, to=args.to, layout=args.layout, seed=args.seed),
            args.src,
            args.dst,
        )
        print(report(converted, args.dst))


if __name__ == '__main__':
    main()
