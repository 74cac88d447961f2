"""Registers, spills, shared memory, global loads and stores of the fused kernels, without a GPU.

    python tools/analysis_tools/kernel_report.py --head-dims 32 64 --dtypes bfloat16 \\
        --capabilities 80 90 --markdown report.md

Every configuration that tuning would try is compiled, for tokens of a packed projection and, with
``--channels-first``, for those of a convolution.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from mirrorla_mm.ops.fused.ahead_of_time import SHARED_MEMORY, Resources, resources
from mirrorla_mm.ops.fused.launch import Launch, configurations
from mirrorla_mm.ops.fused.passes import Options
from mirrorla_mm.ops.fused.traffic import dry_run

HW_SHAPE = (200, 320)
HEADER = (
    'kernel',
    'd',
    'dtype',
    'sm',
    'block',
    'warps',
    'regs',
    'stack',
    'shared',
    'loads',
    'stores',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--head-dims', nargs='+', type=int, default=[32, 48, 64])
    parser.add_argument(
        '--dtypes', nargs='+', default=['float32', 'float16', 'bfloat16'], metavar='DTYPE'
    )
    parser.add_argument('--capabilities', nargs='+', type=int, default=[80, 89, 90], metavar='SM')
    parser.add_argument('--kernels', default='', help='only those with this in their name')
    parser.add_argument('--channels-first', action='store_true', help='tokens are contiguous')
    parser.add_argument('--markdown', type=Path, help='write the table here too')
    return parser.parse_args()


def launches(head_dim: int, dtype: torch.dtype, channels_first: bool) -> list[Launch]:
    """Launches of the whole operator, forwards and backwards, each kernel and flags once."""
    tokens, heads = HW_SHAPE[0] * HW_SHAPE[1], 2
    shape = (1, 3, heads, head_dim, tokens) if channels_first else (1, tokens, 3, heads, head_dim)
    order = (1, 0, 2, 4, 3) if channels_first else (2, 0, 3, 1, 4)
    q, k, v = torch.empty(shape, dtype=dtype, device='meta').permute(order).unbind(0)
    options = Options('mirror', True, True, 1.0, 1.0, HW_SHAPE)
    found = [*dry_run(q, k, v, options), *dry_run(q, k, v, options, (True,) * 5)]
    return list({x.name: x for x in found}.values())


def report(args: argparse.Namespace) -> Iterator[tuple[tuple, Resources, int]]:
    """Rows of the table, as they are compiled."""
    for head_dim in args.head_dims:
        for dtype in args.dtypes:
            for launch in launches(head_dim, getattr(torch, dtype), args.channels_first):
                if args.kernels not in launch.name:
                    continue
                for config in configurations(launch):
                    for capability in args.capabilities:
                        used = resources(launch, config, capability)
                        block = config.kwargs.get('BLOCK_N', '')
                        about = (head_dim, dtype, capability, block, config.num_warps)
                        yield (used.kernel, *about, *used[1:]), used, capability


def main() -> None:
    args = parse_args()
    lines = ['| ' + ' | '.join(HEADER) + ' |', '|' + ' --- |' * len(HEADER)]
    print('\n'.join(lines))
    spilling = over = 0
    for row, used, capability in report(args):
        lines.append('| ' + ' | '.join(map(str, row)) + ' |')
        print(lines[-1], flush=True)
        spilling += used.stack > 0
        over += used.shared > SHARED_MEMORY[capability]
    print(f'{len(lines) - 2} compiled: {spilling} use the stack, {over} too much shared memory.')
    if args.markdown:
        args.markdown.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
