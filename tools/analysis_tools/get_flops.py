"""Parameters and multiply-accumulates of a config's model, per component, in two conventions.

python tools/analysis_tools/get_flops.py CONFIG [--shape H W]
"""

import argparse

from mirrorla_mm.analysis.flops import config_complexity, default_shape, total_complexity
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.configs import ConfigOptions, read_config
from mirrorla_mm.engine.errors import one_line_errors

from rich.console import Console
from rich.table import Table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Parameters and FLOPs of a model')
    parser.add_argument('config', help='path of a detection, segmentation or ImageNet config')
    parser.add_argument(
        '--shape',
        type=positive_int,
        nargs='+',
        help='height and width of the image, or one number for both (default: what the tables of '
        'the field count: 800 1280 for detection, the training crop for segmentation, 224 else)',
    )
    parser.add_argument('--proposals', type=positive_int, default=1000, help='boxes to classify')
    parser.add_argument('--masks', type=positive_int, default=100, help='boxes to segment')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='override settings of the config'
    )
    args = parser.parse_args()
    if args.shape is not None and len(args.shape) not in (1, 2):
        parser.error('--shape takes one or two numbers: height and width.')
    return args


@one_line_errors()
def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    shape = (args.shape * 2)[:2] if args.shape else default_shape(cfg)
    parts = config_complexity(cfg, shape, args.proposals, args.masks)

    table = Table(
        'component',
        *('params (M)', 'conv + linear (GMACs)', 'every product (GMACs)'),
        title=f'{shape[0]}x{shape[1]} (height x width)',
    )
    for name, cost in (*parts.items(), ('total', total_complexity(parts))):
        if name == 'total':
            table.add_section()
        table.add_row(
            name, f'{cost.params / 1e6:.3f}', f'{cost.layers / 1e9:.2f}', f'{cost.total / 1e9:.2f}'
        )
    Console().print(table)
    print("The field's tables call a multiply-accumulate a FLOP; so do the paper's.")


if __name__ == '__main__':
    main()
