"""Export a backbone, segmentor, single-stage detector or DCTLSA, and check it against the model.

Images of any size and number go in, normalised; feature maps, logits or raw head maps come out.
DCTLSA takes RGB in [0, 1] of 9 pixels a side or more, and gives the larger image.

Examples:
    python tools/export.py --arch t --layout linear --out mirrorla-t.onnx
    python tools/export.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --out r50.onnx
    python tools/export.py CONFIG --checkpoint FILE --format torch --out segmentor.pt2
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from mirrorla_mm.backbones import MirrorLA
from mirrorla_mm.backbones.options import LAYOUTS
from mirrorla_mm.backbones.ravlt import ARCHS
from mirrorla_mm.engine.checkpoint import load_checkpoint_file
from mirrorla_mm.engine.checkpoint_fit import check_fit
from mirrorla_mm.engine.configs import read_config
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.export import (
    FORMATS,
    SUFFIXES,
    RawOutputs,
    export,
    largest_error,
    prepare,
)
from mirrorla_mm.registry import MODELS

from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

TOLERANCE = 1e-3
BATCHES = (1, 3)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config',
        nargs='?',
        help='config file, ours or upstream (mmdet::retinanet/...py); default: our backbone',
    )
    parser.add_argument('--checkpoint', help='checkpoint file or URL; default: random weights')
    parser.add_argument('--backbone-only', action='store_true', help="the config's backbone alone")
    parser.add_argument(
        '--arch', choices=tuple(ARCHS), default='t', help='backbone, where no config is given'
    )
    parser.add_argument('--layout', choices=tuple(LAYOUTS), default='linear', help='its layout')
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default='onnx',
        help='onnx, torch (torch.export) or aoti (AOTInductor, for this kind of machine)',
    )
    parser.add_argument('--out', type=Path, required=True, help='.onnx or .pt2 file')
    parser.add_argument(
        '--check',
        nargs='*',
        type=shape,
        default=[(97, 131), (224, 160)],
        metavar='HxW',
        help='sizes to compare at',
    )
    return parser.parse_args()


def shape(text: str) -> tuple[int, int]:
    """'97x131' to (97, 131)."""
    height, width = text.lower().split('x')
    return int(height), int(width)


def build(args: argparse.Namespace) -> nn.Module:
    """The model that the command line names."""
    if args.config is None:
        model = MirrorLA(args.arch, args.layout)
    else:
        cfg = read_config(args.config, needs=('model.backbone',))
        init_default_scope(cfg.get('default_scope', 'mirrorla_mm'))
        cfg.model.backbone.init_cfg = None
        if 'pretrained' in cfg.model:  # mmseg's way of naming the backbone's weights
            cfg.model.pretrained = None
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if args.checkpoint:
        check_fit(model, load_checkpoint_file(args.checkpoint, 'cpu'), args.checkpoint)
    return model.backbone if args.config and args.backbone_only else model


def check(model: RawOutputs, file: Path, args: argparse.Namespace) -> None:
    """Compare a file with the model.

    Raises:
        UserError: If their outputs differ.
    """
    errors = [largest_error(model, file, args.format, args.check, batch) for batch in BATCHES]
    sizes = ', '.join('{}x{}'.format(*s) for s in args.check)
    said = ' and '.join(f'{error:.1e}' for error in errors)
    print(f'largest relative difference at {sizes}, one image and three: {said}')
    if not all(error < TOLERANCE for error in errors):
        raise UserError(
            f'The exported graph differs from the model by more than {TOLERANCE}: {args.out} was '
            'not written.'
        )


@one_line_errors()
def main() -> None:
    """Export and check."""
    args = parse_args()
    if args.out.suffix != SUFFIXES[args.format]:
        raise UserError(f'--format {args.format} writes {SUFFIXES[args.format]}, not {args.out}.')
    model = prepare(build(args))
    compare = partial(check, model, args=args) if args.check else None
    export(model, args.out, args.format, check=compare)
    size = args.out.stat().st_size / 2**20
    print(f'{args.out}: {size:.1f} MiB')


if __name__ == '__main__':
    main()
