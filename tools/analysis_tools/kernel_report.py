"""Registers, spills, shared memory and instructions of the fused kernels, without a GPU.

    python tools/analysis_tools/kernel_report.py --head-dims 32 64 --dtypes bfloat16 \\
        --capabilities 80 90 --markdown report.md

Every configuration that tuning would try is compiled, for tokens of a packed projection or, with
``--channels-first``, for those of a convolution. The last two columns are the instructions of the
loop over tiles, and what its warps issue for a token of a head. A multiprocessor issues four of
them a cycle at most: a pass is bound by memory only where that takes less than moving its bytes.

With ``--launch`` the operator is called instead, twice forwards and backwards, on a driver that
stands for the GPU: through the tuner, the binder, the compiler and the limits of shared memory, for
q, k and v of both layouts and for a whole projection. One line for every capability, head
dimension, dtype and layout. ``--choices 1`` leaves the tuner the first configuration of each
kernel, which takes a fifth of the time. What is compiled stays on disk, so a run that was cut short
is soon there again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

from mirrorla_mm.analysis.ahead_of_time import SHARED_MEMORY, Resources, resources
from mirrorla_mm.analysis.fake_gpu import fake_gpu
from mirrorla_mm.analysis.traffic import dry_run, traffic
from mirrorla_mm.ops.fused import backward, forward
from mirrorla_mm.ops.fused.launching import Launch
from mirrorla_mm.ops.fused.operator import mirror_attention_fused, mirror_attention_packed
from mirrorla_mm.ops.options import Options

import torch
import triton

HW_SHAPE = (200, 320)
HEADS = 2
LAYOUTS = ('packed', 'channels first', 'one tensor')
HEADER = (
    'kernel',
    'd',
    'dtype',
    'sm',
    'moved',
    'block',
    'warps',
    'regs',
    'stack',
    'shared',
    'loads',
    'stores',
    'loop',
    'per token',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--head-dims', nargs='+', type=int, default=[24, 32, 40, 48, 64, 96, 128])
    parser.add_argument(
        '--dtypes', nargs='+', default=['float32', 'float16', 'bfloat16'], metavar='DTYPE'
    )
    parser.add_argument('--capabilities', nargs='+', type=int, default=[80, 89, 90], metavar='SM')
    parser.add_argument('--kernels', default='', help='only those with this in their name')
    parser.add_argument('--channels-first', action='store_true', help='tokens are contiguous')
    parser.add_argument('--launch', action='store_true', help='call the operator on fake GPUs')
    parser.add_argument('--choices', type=int, help='with --launch: tune among so many, not all')
    parser.add_argument('--markdown', type=Path, help='write a summary here')
    return parser.parse_args()


def empty_qkv(
    head_dim: int, dtype: torch.dtype, channels_first: bool, device: str
) -> tuple[torch.Tensor, ...]:
    """q, k, v as views of one tensor."""
    tokens = HW_SHAPE[0] * HW_SHAPE[1]
    shape = (1, 3, HEADS, head_dim, tokens) if channels_first else (1, tokens, 3, HEADS, head_dim)
    order = (1, 0, 2, 4, 3) if channels_first else (2, 0, 3, 1, 4)
    return torch.empty(shape, dtype=dtype, device=device).permute(order).unbind(0)


def restrict(choices: int) -> None:
    """Leave the tuners the first configurations of each kernel."""
    for module in (forward, backward):
        for kernel in vars(module).values():
            if hasattr(kernel, 'configs'):
                kernel.configs = kernel.configs[:choices]


def inputs(head_dim: int, dtype: torch.dtype, layout: str) -> tuple[Callable, list[torch.Tensor]]:
    """An entry of the operator, and its tensors up to theta."""
    theta = torch.zeros(HEADS, head_dim // 2)
    if layout == 'one tensor':
        shape = (1, HW_SHAPE[0] * HW_SHAPE[1], 4, HEADS, head_dim)
        return mirror_attention_packed, [torch.empty(shape, dtype=dtype), theta]
    qkv = empty_qkv(head_dim, dtype, layout == 'channels first', 'cpu')
    return mirror_attention_fused, [*qkv, theta]


def call(head_dim: int, dtype: torch.dtype, layout: str, capability: int) -> str:
    """Outcome of two calls, in a few words."""
    options = Options(hw_shape=HW_SHAPE if head_dim % 4 == 0 else None)
    attend, tensors = inputs(head_dim, dtype, layout)
    leaves = [x.requires_grad_() for x in tensors]
    seen = []
    with fake_gpu(capability) as gpu, warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        for _ in range(2):
            gpu.launched.clear()
            gpu.timed = 0
            try:
                out = attend(*leaves, None, options)
                torch.autograd.grad(out, leaves, out)
            except RuntimeWarning as warning:
                return f'refused: {warning}'
            seen.append((gpu.timed, len(gpu.launched)))
    shared = max(x.shared for x in gpu.launched)
    return (
        f'{seen[0][0]} configurations timed, then {seen[1][0]}; {seen[1][1]} launches, '
        f'{shared} bytes of shared memory at the most'
    )


def launches(head_dim: int, dtype: torch.dtype, channels_first: bool) -> list[Launch]:
    """Launches of the whole operator, forwards and backwards, each kernel and flags once."""
    q, k, v = empty_qkv(head_dim, dtype, channels_first, 'meta')
    options = Options('mirror', True, True, 1.0, 1.0, HW_SHAPE)
    found = [*dry_run(q, k, v, options), *dry_run(q, k, v, options, (True,) * 5)]
    return list({x.name: x for x in found}.values())


class Compiled(NamedTuple):
    """One kernel in one configuration.

    Attributes:
        head_dim (int): Channels d of a head.
        dtype (str): Of q, k and v.
        capability (int): 90 for sm_90.
        moved (int): Bytes read and written for a token of a head, at the least.
        block (int, optional): Tokens of a tile; None where the loop is not over tokens.
        warps (int): Warps of a program.
        per_token (int, optional): Instructions issued for a token of a head, of all warps.
        used (Resources): What the compiler made of it.
    """

    head_dim: int
    dtype: str
    capability: int
    moved: int
    block: int | None
    warps: int
    per_token: int | None
    used: Resources

    @property
    def cells(self) -> tuple:
        kernel, *used = self.used
        return kernel, *self[:4], self.block or '', self.warps, *used, self.per_token or ''


def report(args: argparse.Namespace) -> Iterator[Compiled]:
    """Everything that tuning would try, as it is compiled."""
    for head_dim, dtype in itertools.product(args.head_dims, args.dtypes):
        for launch in launches(head_dim, getattr(torch, dtype), args.channels_first):
            if args.kernels not in launch.name:
                continue
            moved = traffic(launch).tokens // (HEADS * HW_SHAPE[0] * HW_SHAPE[1])
            for config, capability in itertools.product(launch.configurations, args.capabilities):
                used = resources(launch, config, capability)
                block = config.kwargs.get('BLOCK_N')
                tensors = math.prod(launch.grid[2:])  # of the moments: q, then k
                issued = block and round(used.loop * config.num_warps / block * tensors)
                about = (head_dim, dtype, capability, moved, block, config.num_warps)
                yield Compiled(*about, issued, used)


def line(cells: Iterable[object]) -> str:
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def summary(compiled: list[Compiled]) -> str:
    """Markdown with the range over the configurations of each kernel."""

    def key(one: Compiled) -> tuple:
        return one.used.kernel, *one[:4]

    def span(values: Iterable[int | None]) -> str:
        found = sorted({x for x in values if x is not None})
        return '–'.join(map(str, dict.fromkeys((found[0], found[-1])))) if found else ''

    fields = ('registers', 'stack', 'shared', 'loads', 'stores')
    header = (
        *('kernel', 'd', 'dtype', 'sm', 'bytes per token', 'configurations'),
        *fields,
        'instructions per token',
    )
    lines = [line(header), line(['---'] * len(header))]
    for name, group in itertools.groupby(sorted(compiled, key=key), key):
        found = list(group)
        spans = (span(getattr(one.used, field) for one in found) for field in fields)
        lines.append(line((*name, len(found), *spans, span(one.per_token for one in found))))
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    if args.launch:
        if args.choices:
            restrict(args.choices)
        kinds = (args.capabilities, args.head_dims, args.dtypes, LAYOUTS)
        for capability, head_dim, dtype, layout in itertools.product(*kinds):
            found = call(head_dim, getattr(torch, dtype), layout, capability)
            print(line((head_dim, dtype, layout, capability, found)), flush=True)
        return
    print(line(HEADER), line(['---'] * len(HEADER)), sep='\n')
    compiled = []
    for one in report(args):
        compiled.append(one)
        print(line(one.cells), flush=True)
    spilling = sum(one.used.stack > 0 for one in compiled)
    over = sum(one.used.shared > SHARED_MEMORY[one.capability] for one in compiled)
    found = f'{len(compiled)} compiled: {spilling} use the stack, {over} too much shared memory.'
    print(found)
    if args.markdown:
        about = f'triton {triton.__version__}, {date.today()}, `python {" ".join(sys.argv)}`.'
        text = f'# Kernels, compiled ahead of time\n\n{about} {found}\n\n{summary(compiled)}\n'
        args.markdown.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
