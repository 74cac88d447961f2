"""Take the backbone out of a checkpoint of an ImageNet (or other) training, for a dense config.

python tools/model_converters/backbone.py CONFIG SRC DST
"""

import argparse
import functools

from mirrorla_mm.converters import convert_backbone, convert_file, report
from mirrorla_mm.engine.configs import read_config
from mirrorla_mm.engine.errors import one_line_errors

from mmengine.registry import init_default_scope


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Take the backbone out of a checkpoint')
    parser.add_argument('config', help='config that shall start from it')
    parser.add_argument('src', help='checkpoint of a classifier, detector or segmentor')
    parser.add_argument('dst', help='checkpoint to write')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        cfg = read_config(args.config, needs=('model.backbone',))
        init_default_scope(cfg.get('default_scope', 'mirrorla_mm'))
        backbone = cfg.model.backbone.to_dict()
        converted = convert_file(
            functools.partial(convert_backbone, backbone=backbone), args.src, args.dst
        )
        print(report(converted, args.dst, settings=False))


if __name__ == '__main__':
    main()
