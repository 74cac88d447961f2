"""Attentions side by side in one host: size, cost, speed, memory and what their maps are like."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..attention import Attention
from ..registry import MODELS, build_attention
from .benchmark import elapsed
from .flops import empty_parameters, model_complexity, total_complexity
from .topology import effective_rank

HOSTS = {
    'ravlt': dict(type='mirrorla_mm.RAVLT', layout='linear'),
    'nalaformer': dict(type='mirrorla_mm.NaLaFormer', layout='linear'),
    'swin': dict(type='mirrorla_mm.LinearSwin'),
    'pvt': dict(type='mirrorla_mm.LinearPVT'),
}


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one pass: ``memory`` is the peak of what the pass itself allocated."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class MapFacts:
    """Statistics of the maps of one attention module, averaged over images and heads.

    Attributes:
        rank (float): Numerical rank of the map.
        effective_rank (float): exp of the entropy of its normalised singular values.
        entropy (float): Of the rows, over that of a uniform row: 1 is uniform, 0 one token.
        dead (float): Share of the entries of q and k that the output does not depend on.
    """

    rank: float
    effective_rank: float
    entropy: float
    dead: float


@dataclass(frozen=True)
class Facts:
    """One row of the comparison; FLOPs are multiply-accumulates, see :mod:`.flops`."""

    method: str
    params: int
    layers: int
    total: int
    inference: Cost
    training: Cost
    maps: MapFacts


def build_host(host: str, attn_cfg: dict, arch: str = 't') -> nn.Module:
    """A backbone of :data:`HOSTS` with an attention in its linear stages."""
    return MODELS.build(dict(HOSTS[host], arch=arch, attn_cfg=attn_cfg))


def compare(
    method: str, host: str, arch: str, image: Tensor, repeats: int = 3, seed: int = 0
) -> Facts:
    """All facts about a method in a host, at the size and on the device of an image.

    Args:
        method (str): Registered name.
        host (str): One of :data:`HOSTS`.
        arch (str): The host's architecture.
        image (Tensor): Shape (B, 3, H, W), normalised.
        repeats (int): Passes that are timed, after one that is not; the median counts.
        seed (int): Of the weights, which are at their initial values.
    """
    attn_cfg = dict(type=method)
    with empty_parameters():
        empty = build_host(host, attn_cfg, arch)
    empty.to('meta').eval()
    size = total_complexity(model_complexity(empty, image.shape[-2:]))
    torch.manual_seed(seed)
    model = build_host(host, attn_cfg, arch).to(image.device)
    training = measure(lambda: _train_step(model.train(), image), image.device, repeats)
    model.eval()
    with torch.no_grad():
        inference = measure(lambda: model(image), image.device, repeats)
    maps = map_facts(*first_attention(model, image))
    return Facts(method, size.params, size.layers, size.total, inference, training, maps)


def scaling(
    method: str,
    sides: list[int],
    channels: int = 64,
    heads: int = 2,
    device: torch.device | str = 'cpu',
    repeats: int = 3,
    patience: float = 1.0,
) -> list[tuple[Cost, Cost]]:
    """Inference and training cost of one module alone on square grids of tokens.

    The grids take turns, as a machine's speed may differ from one second to the next. Sides that
    come after a training pass of more than ``patience`` seconds are left out: where time grows with
    the square of the tokens, the next would take minutes.
    """
    passes: list[tuple[Callable[[], object], ...]] = []
    first: list[list[Cost]] = []
    for side in sides:
        if first and first[-1][1].seconds > patience:
            break
        passes.append(_passes(method, side, channels, heads, device))
        first.append([measure(run, device, repeats=1) for run in passes[-1]])
    rounds = [[[elapsed(run, device) for run in runs] for runs in passes] for _ in range(repeats)]
    return [
        tuple(Cost(median(times), cost.memory) for times, cost in zip(zip(*grid), costs))
        for grid, costs in zip(zip(*rounds), first)
    ]


def _passes(
    method: str, side: int, channels: int, heads: int, device: torch.device | str
) -> tuple[Callable[[], object], ...]:
    """Inference and a training step of one module on a square grid."""
    torch.manual_seed(0)
    module = build_attention(
        dict(type=method), embed_dims=channels, num_heads=heads, grid_size=(side, side)
    ).to(device)
    x = torch.randn(1, side * side, channels, device=device)

    def attend() -> Tensor:
        return module(x, (side, side))

    return torch.no_grad()(attend), lambda: _backward(attend())


def fourfold(seconds: list[float], sides: list[int]) -> list[float]:
    """Growth of the time from one grid to the next, for four times the tokens: 4 if linear."""
    return [
        (after / before) ** (math.log(2) / math.log(larger / smaller))
        for before, after, smaller, larger in zip(seconds, seconds[1:], sides, sides[1:])
    ]


def measure(run: Callable[[], object], device: torch.device | str, repeats: int = 3) -> Cost:
    """Time and peak memory of ``run``; memory in a pass of its own, as watching it costs time."""
    with peak_memory(torch.device(device)) as memory:
        run()
    return Cost(median(elapsed(run, device) for _ in range(repeats)), memory())


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Give a function that says how many bytes the block allocated at its peak."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        with StorageWatch() as watch:
            yield lambda: watch.peak


class StorageWatch(TorchDispatchMode):
    """Peak of the bytes in storages made within the ``with`` block and still alive.

    What kernels allocate and free within themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _address(tensor) not in known | self._seen:
                self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = _address(tensor), storage.nbytes()
        self._seen.add(address)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self._live -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def first_attention(model: nn.Module, image: Tensor) -> tuple[Attention, Tensor, tuple[int, int]]:
    """The first attention module of a backbone, and what it gets for an image."""
    found: list[tuple] = []

    class Reached(Exception):
        pass

    def stop(module: Attention, args: tuple) -> None:
        found.append((module, args[0].detach(), tuple(args[1])))
        raise Reached

    module = next(m for m in model.modules() if isinstance(m, Attention))
    handle = module.register_forward_pre_hook(stop)
    try:
        model(image)
    except Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def map_facts(module: Attention, x: Tensor, hw_shape: tuple[int, int], side: int = 14) -> MapFacts:
    """Rank, entropy and dead entries of a module's maps on an image's tokens.

    Row ``t`` of a head's map is how its output at token ``t`` changes with the values, averaged
    over the channels: exact for all that are linear in v.

    Args:
        module (Attention): The module.
        x (Tensor): Its tokens, shape (B, N, C); the first image is taken.
        hw_shape (tuple[int, int]): Their grid.
        side (int): Tokens are taken at regular steps, so that at most about this many a side stay.
    """
    steps = [max(1, n // side) for n in hw_shape]
    x = x[:1].unflatten(1, hw_shape)[:, :: steps[0], :: steps[1]]
    hw_shape = tuple(x.shape[1:3])
    with torch.no_grad():
        q, k, v, *_ = module.project(x.flatten(1, 2), hw_shape)
    q, k, v = (
        t.unflatten(-1, (module.num_heads, -1)).transpose(1, 2).detach().requires_grad_()
        for t in (q, k, v)
    )
    with torch.enable_grad():
        out = module.attend(q, k, v, hw_shape)
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
        reached = torch.autograd.grad(out, (q, k), probe, retain_graph=True)
        rows = [
            torch.autograd.grad(out[:, :, query].sum(), v, retain_graph=True)[0][0].mean(-1)
            for query in range(out.shape[2])
        ]
    maps = torch.stack(rows, dim=1).double()
    shares = maps.clamp(min=0)
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
    uniform = math.log(max(maps.shape[-1], 2))
    return MapFacts(
        torch.linalg.matrix_rank(maps, rtol=1e-5).double().mean().item(),
        mean(map(effective_rank, maps)),
        torch.special.entr(shares).sum(-1).mean().item() / uniform,
        torch.cat([(grad == 0).flatten() for grad in reached]).double().mean().item(),
    )


def _train_step(model: nn.Module, image: Tensor) -> None:
    _backward(sum(out.mean() for out in model(image)))


def _backward(out: Tensor) -> None:
    out.mean().backward()
