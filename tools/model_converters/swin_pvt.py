"""Convert an official FLatten or PolaFormer checkpoint in Swin or PVT.

python tools/model_converters/swin_pvt.py pola_swin_t.pth pola-swin-t.pth
"""

import argparse

from mirrorla_mm.converters import convert_swin_pvt, read_state_dict, report, write_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Convert an official FLatten or PolaFormer checkpoint'
    )
    parser.add_argument('src', help='official file of a classifier')
    parser.add_argument('dst', help='checkpoint to write')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        converted = convert_swin_pvt(read_state_dict(args.src))
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from None
    write_checkpoint(converted, args.dst)
    print(report(converted, args.dst))


if __name__ == '__main__':
    main()
