"""Data parallelism, unused outputs, activation checkpointing and compilation, together."""

import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mirrorla_mm.backbones import MirrorLA

WORLD = 2


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def backbone(**options) -> MirrorLA:
    """Three stages of which the heads take the first two: the last gets no gradient."""
    torch.manual_seed(0)
    return MirrorLA(
        arch=dict(embed_dims=(8, 16, 8), depths=(1, 1, 1), num_heads=(1, 2, 1)),
        layout=('linear', 'softmax', 'linear'),
        drop_path_rate=0.0,
        out_indices=(0, 1),
        norm_eval=True,
        **options,
    ).train()


def images() -> torch.Tensor:
    return torch.randn(2 * WORLD, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def loss_of(model, x) -> torch.Tensor:
    return sum(y.square().mean() for y in model(x))


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix('_orig_mod.'): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def worker(rank: int, port: int, compiled: bool, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=WORLD
    )
    model = DistributedDataParallel(backbone(with_cp=True), find_unused_parameters=True)
    step = torch.compile(model, backend='aot_eager') if compiled else model
    for _ in range(2):  # A reducer that waits for an unused gradient hangs or fails at the second.
        model.zero_grad()
        loss_of(step, images().chunk(WORLD)[rank].requires_grad_()).backward()
    if rank == 0:
        torch.save(gradients(model.module), out)
    dist.barrier()
    # The reducer in the wrapper would drop the last reference to gloo's group with the GIL held,
    # and wait for a thread that wants the GIL (pytorch #180701, #182083).
    del step, model
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('compiled', (False, True), ids=('eager', 'compiled'))
def test_two_processes_give_the_gradients_of_one(compiled, tmp_path):
    whole = backbone()
    loss_of(whole, images()).backward()
    expected = gradients(whole)
    out = str(tmp_path / 'gradients.pth')
    arguments = [str(free_port()), str(int(compiled)), out]
    # This file is the worker's program, see its end.
    processes = [
        subprocess.Popen(
            [sys.executable, '-W', 'ignore', __file__, str(rank), *arguments],
            env={**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            errors = process.communicate(timeout=600)[1]
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    actual = torch.load(out, weights_only=True)
    assert any(name.startswith('stages.1') for name in expected)
    for name, grad in actual.items():
        if name not in expected:  # Of the stage that nobody uses, DDP leaves zeros.
            assert name.startswith(('stages.2', 'downsamples.1')) and not grad.any()
            continue
        torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-6)
    assert expected.keys() <= actual.keys()


if __name__ == '__main__':
    worker(int(sys.argv[1]), int(sys.argv[2]), bool(int(sys.argv[3])), sys.argv[4])
