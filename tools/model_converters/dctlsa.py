"""Convert DCTLSA's published weights, make them another attention's warm start, or go back.

python tools/model_converters/dctlsa.py X4.pt dctlsa_x4.pth
python tools/model_converters/dctlsa.py X4.pt start.pth --config CONFIG
python tools/model_converters/dctlsa.py TRAINED.pth X4.pt --back
"""

import argparse
import functools
import io

from mirrorla_mm.converters import (
    blamed_on,
    convert_dctlsa,
    convert_file,
    official_dctlsa,
    read_state_dict,
    report,
)
from mirrorla_mm.engine.atomic import whole_file
from mirrorla_mm.engine.configs import read_config
from mirrorla_mm.engine.errors import one_line_errors

import torch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='official file, or with --back a checkpoint of this project')
    parser.add_argument('dst', help='file to write')
    parser.add_argument('--config', help='the config that shall start from it')
    parser.add_argument('--back', action='store_true', help="write the authors' names")
    return parser.parse_args()


def go_back(src: str, dst: str) -> None:
    """Write the file that the authors' code and spandrel read."""
    weights = read_state_dict(src)
    with blamed_on(src):
        weights = official_dctlsa(weights)
    content = io.BytesIO()
    torch.save(weights, content)
    with whole_file(dst) as partial:
        partial.write_bytes(content.getvalue())
    print(f"{dst}: {len(weights)} entries under the authors' names")


def main() -> None:
    args = parse_args()
    with one_line_errors():
        if args.back:
            return go_back(args.src, args.dst)
        backbone = None
        if args.config:
            backbone = read_config(args.config, needs=('model.backbone',)).model.backbone
        converted = convert_file(
            functools.partial(convert_dctlsa, backbone=backbone), args.src, args.dst
        )
        print(report(converted, args.dst, settings=not args.config))


if __name__ == '__main__':
    main()
