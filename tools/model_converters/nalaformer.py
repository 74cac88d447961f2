"""Convert a NaLaFormer checkpoint.

python tools/model_converters/nalaformer.py NALAFORMER_T.pth nalaformer-t.pth
"""

import argparse

from mirrorla_mm.converters import convert_nalaformer, read_state_dict, report, write_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Convert a NaLaFormer checkpoint')
    parser.add_argument('src', help='official file of a classifier')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--layout', choices=('paper', 'linear'), default='paper', help='layout of the backbone'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        converted = convert_nalaformer(read_state_dict(args.src), args.layout)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from None
    write_checkpoint(converted, args.dst)
    print(report(converted, args.dst))


if __name__ == '__main__':
    main()
