"""Does training in half precision stay finite at ten times the learning rate?

python tools/studies/amp_stability.py --steps 500 --methods MirrorAttention RALA
"""

from __future__ import annotations

import argparse
import math
from statistics import mean

import mirrorla_mm  # noqa: F401  (registers the attentions)
from mirrorla_mm.analysis.stability import train
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import one_line_errors

import torch

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--methods', nargs='+', default=['MirrorAttention', 'ReLUAttention', 'RALA']
    )
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument('--steps', type=int, default=500)
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
                losses = [loss for loss in result.losses if math.isfinite(loss)]
                end = 'all' if result.first_bad is None else f'until step {result.first_bad}'
                print(
                    f'| {method} | {name} | {seed} | {losses[0]:.3f} | {mean(losses[-20:]):.3f} | '
                    f'{result.skipped} | {end} |',
                    flush=True,
                )


if __name__ == '__main__':
    main()
