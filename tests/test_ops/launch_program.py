"""Run the fused operator on a fake GPU, as ``test_triton_launch.py`` asks; a program of its own.

Reads a list of cases as JSON from its only argument, prints one record for each call as JSON.
"""

import json
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from mirrorla_mm.analysis import plain_triton
from mirrorla_mm.analysis.fake_gpu import fake_gpu
from mirrorla_mm.ops.fused import backward, forward, operator
from mirrorla_mm.ops.options import Options


def two_choices_each() -> None:
    """Enough for the tuner to have a choice."""
    for module in (forward, backward, plain_triton):
        for kernel in vars(module).values():
            if hasattr(kernel, 'configs'):
                kernel.configs = kernel.configs[:2]


def entry(channels, dtype, layout, options, tokens):
    """A function and the tensors to call it with."""
    packed = torch.zeros(1, tokens, 4, 2, channels).to(getattr(torch, dtype))
    q, k, v, _ = packed.permute(2, 0, 3, 1, 4).unbind(0)
    theta = torch.zeros(2, channels // 2)
    if layout == 'one tensor':
        return lambda *x: operator.mirror_attention_packed(*x, None, options), [packed, theta]
    if layout == 'plain peer':
        return plain_triton.plain_linear_attention, [q, k, v]
    if layout == 'channels first':
        q, k, v = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v))
    return lambda *x: operator.mirror_attention_fused(*x, None, options), [q, k, v, theta]


def call(channels, dtype, layout, capability=90, grid=(30, 20), rope=True, calls=1, threads=1):
    """Forward and backward, ``calls`` times; what was launched, timed and warned of."""
    options = Options(hw_shape=tuple(grid) if rope else None)

    def both_ways(_) -> None:
        attend, tensors = entry(channels, dtype, layout, options, grid[0] * grid[1])
        leaves = [x.requires_grad_() for x in tensors]
        results = attend(*leaves)
        torch.autograd.grad(results, leaves, results)

    for _ in range(calls):
        with fake_gpu(capability) as gpu, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(both_ways, range(threads)))
        yield dict(
            kernels=[x.kernel for x in gpu.launched],
            timed=gpu.timed,
            shared=max((x.shared for x in gpu.launched), default=0),
            warnings=[str(x.message) for x in warned if x.category is RuntimeWarning],
        )


if __name__ == '__main__':
    two_choices_each()
    cases = json.loads(sys.argv[1])
    print(json.dumps([list(call(**case)) for case in cases]))
