"""The paper's Table 4, super-resolution: sizes, products and memory of the rows, beside its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..ops import use_backend
from .compare import StorageWatch
from .flops import build_empty, config_complexity, default_shape, total_complexity

TITLE = 'Table 4: super-resolution with DCTLSA'
SETS = ('Set5', 'Set14', 'BSDS100', 'Urban100', 'Manga109')
# Height and width of the largest image of a set; that of Urban100 is not at hand.
LARGEST = {
    'Set5': (512, 512),
    'Set14': (576, 720),
    'BSDS100': (321, 481),
    'Manga109': (1170, 826),
}
NOTES = """\
P and F are ours, for an output of 720x1280; the paper prints neither. Its PSNR and SSIM *need
training*; on Set5 at ×4 the public weights of DCTLSA, for which the paper prints 32.44 / 0.8973,
give 32.52 / 0.8990 (see [super-resolution](super_resolution.md)).

Memory is in GiB, ours / the paper's (an RTX 3090), for the largest image of a set. Ours is a model:
the bytes of all tensors that live at once in a forward pass in float32, weights included. What
kernels and the allocator take for themselves is not in it, and the authors' host may keep more maps
alive. *Fused* is a kernel that keeps no matrix of scores and takes heads of 11 channels. The paper
compares with a softmax whose matrix is written out; what it saves, a fused softmax saves too."""

NAIVE, MIRROR = 'DCTLSA-Softmax', 'DCTLSA-MirrorLA'
# Label, and start of the config's name.
ROWS = {
    'DCTLSA': 'dctlsa',
    NAIVE: 'dctlsa-softmax-w32',
    'the same, fused': 'dctlsa-softmax-w32',
    'DCTLSA-ReLU': 'dctlsa-relu',
    MIRROR: 'dctlsa-mirrorla',
    'the same, 56 channels': 'dctlsa-mirrorla-c56',
}
# The paper's PSNR and SSIM on each of the sets, and its GB.
FIGURES = {
    (4, 'DCTLSA'): '32.44 0.8973 28.77 0.7846 27.67 0.7386 26.41 0.7944 31.04 0.9138',
    (4, MIRROR): '32.53 0.8983 28.84 0.7867 27.74 0.7409 26.65 0.8007 31.30 0.9170',
    (3, 'DCTLSA'): '34.76 0.9296 30.64 0.8474 29.27 0.8093 28.81 0.8674 34.42 0.9492',
    (3, MIRROR): '34.84 0.9301 30.70 0.8488 29.33 0.8106 29.03 0.8688 34.61 0.9505',
}
MEMORY = {
    (4, NAIVE): '1.05 1.47 0.59 4.28 3.44',
    (4, MIRROR): '0.18 0.30 0.11 0.85 0.67',
    (3, NAIVE): '1.66 2.27 0.93 7.19 5.49',
    (3, MIRROR): '0.33 0.51 0.19 1.52 1.20',
}


@torch.no_grad()
def live_bytes(model: nn.Module, shape: tuple[int, int]) -> int:
    """Bytes that live at once, at most, in a forward pass of one image, parameters included.

    Args:
        model (nn.Module): On any device; on ``meta`` nothing is computed.
        shape (tuple[int, int]): Height and width of the input.
    """
    parameters = list(model.parameters())
    with use_backend('torch'), fused_softmax(), StorageWatch() as watch:
        model(torch.empty(1, 3, *shape, device=parameters[0].device))
    return watch.peak + sum(p.nbytes for p in parameters)


@contextmanager
def fused_softmax() -> Iterator[None]:
    """Let softmax attention allocate what a fused kernel does: its output and a sum for each row.

    On the meta device torch would write the matrix out.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sums = q.new_empty(q.shape[:-1])
        out = torch.empty_like(v)
        del sums
        return out

    with mock.patch('torch.nn.functional.scaled_dot_product_attention', attend):
        yield


def render(configs: Path) -> str:
    """The table as Markdown."""
    return '\n'.join([f'## {TITLE}', '', NOTES, '', *(render_scale(s, configs) for s in (4, 3))])


def render_scale(scale: int, configs: Path) -> str:
    """The part of the table for one factor."""
    names = dict.fromkeys(ROWS.values())
    commands = [f'python tools/train.py configs/{_path(name, scale)}' for name in names]
    tables = [*_sizes(scale, configs), '', *_memory(scale, configs)]
    return '\n'.join([f'### ×{scale}', '', *tables, '', '```shell', *commands, '```', ''])


def _path(name: str, scale: int) -> str:
    return f'super_resolution/{name}_x{scale}_1xb16-1000k_div2k.py'


def _config(label: str, scale: int, configs: Path) -> Config:
    cfg = Config.fromfile(configs / _path(ROWS[label], scale))
    if label == NAIVE:
        cfg.model.backbone.attn_cfg.naive = True
    return cfg


def _sizes(scale: int, configs: Path) -> list[str]:
    lines = [['row', 'P (M)', 'F (G): convolution + linear', 'every product', *SETS]]
    for label in ROWS:
        if label.endswith('fused'):  # It has the products of the row before it.
            continue
        cfg = _config(label, scale, configs)
        cost = total_complexity(config_complexity(cfg, default_shape(cfg)))
        cells = [f'{cost.params / 1e6:.4f}', f'{cost.layers / 1e9:.2f}', f'{cost.total / 1e9:.2f}']
        figures = FIGURES.get((scale, label), '').split()
        pairs = [f'{a} / {b} needs training' for a, b in zip(figures[::2], figures[1::2])]
        lines.append([label, *cells, *(pairs or [''] * len(SETS))])
    return _markdown(lines)


def _memory(scale: int, configs: Path) -> list[str]:
    lines = [['row', *(f'{name} ({h}x{w})' for name, (h, w) in LARGEST.items())]]
    for label in ROWS:
        model = build_empty(_config(label, scale, configs)).backbone
        paper = dict(zip(SETS, MEMORY.get((scale, label), '').split()))
        line = [label]
        for name, (height, width) in LARGEST.items():
            ours = live_bytes(model, (height // scale, width // scale)) / 2**30
            line.append(f'{ours:.3f}' + (f' / {paper[name]}' if paper else ''))
        lines.append(line)
    return _markdown(lines)


def _markdown(rows: list[list[str]]) -> list[str]:
    rows = [rows[0], ['---'] * len(rows[0]), *rows[1:]]
    return [f'| {" | ".join(row)} |' for row in rows]
