"""Does training in half precision stay finite at ten times the learning rate?

python tools/studies/amp_stability.py --steps 500 --methods MirrorAttention RALA
"""

from __future__ import annotations

import argparse
import math
from statistics import mean

from mirrorla_mm.analysis.stability import train
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.registry import ATTENTIONS

import torch

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=sorted(ATTENTIONS),
        default=['MirrorAttention', 'ReLUAttention', 'RALA'],
        metavar='METHOD',
        help='any of %(choices)s',
    )
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument('--steps', type=positive_int, default=500)
    parser.add_argument('--lr', type=float, default=1e-2, help='ten times the usual')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


@one_line_errors()
def main() -> None:
    args = parse_args()
    usable_device(args.device)
    print('| method | precision | seed | first loss | last 20 losses | skipped steps | finite |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for method in args.methods:
        for name in args.dtypes:
            for seed in args.seeds:
                result = train(
                    dict(type=method),
                    DTYPES[name],
                    args.steps,
                    args.lr,
                    device=args.device,
                    seed=seed,
                )
                losses = list(filter(math.isfinite, result.losses))
                last = f'{mean(losses[-20:]):.3f}' if losses else '-'
                end = 'all' if result.first_bad is None else f'until step {result.first_bad}'
                print(
                    f'| {method} | {name} | {seed} | {result.losses[0]:.3f} | {last} | '
                    f'{result.skipped} | {end} |',
                    flush=True,
                )


if __name__ == '__main__':
    main()
