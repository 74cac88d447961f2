"""Training at a learning rate ten times too high, in any precision: does it stay finite?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import RAVLT

ARCH = dict(embed_dims=(16, 32), depths=(2, 2), num_heads=(1, 2))
CLASSES = 4


@dataclass
class Stability:
    """Record of a run.

    Attributes:
        losses (list[float]): Of every step.
        first_bad (int, optional): The first step whose loss was not finite.
        skipped (int): Steps that the gradient scaler left out, its search for a scale included.
    """

    losses: list[float]
    first_bad: int | None
    skipped: int


def stripes(batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of noisy stripes and, at stride 4, the quarter of the wave that each pixel is in."""
    phase = torch.rand(batch, 1, 1, generator=generator) * 6.28
    direction = torch.rand(batch, 1, 1, generator=generator) * 6.28
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    wave = 0.3 * (rows * direction.sin() + columns * direction.cos()) + phase
    colour = torch.stack((wave.sin(), wave.cos(), torch.zeros_like(wave)), 1)
    noise = 0.3 * torch.randn(colour.shape, generator=generator)
    label = (wave % 6.2832 / 6.2832 * CLASSES).long().clamp_max(CLASSES - 1)
    return colour + noise, label[:, 2::4, 2::4]


def train(
    attn_cfg: dict,
    dtype: torch.dtype,
    steps: int = 500,
    lr: float = 1e-2,
    size: int = 32,
    device: str = 'cpu',
    seed: int = 0,
) -> Stability:
    """Train a small host under autocast, with a gradient scaler for float16.

    Args:
        attn_cfg (dict): Attention of the host.
        dtype (torch.dtype): float32 for none.
        steps (int): Optimizer steps.
        lr (float): Of AdamW; 1e-3 is what the host is otherwise trained with.
        size (int): Of the images, in pixels.
        device (str): Where to train.
        seed (int): Of weights and data.

    Returns:
        Stability: Ends at the first loss that is not finite.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    host = RAVLT(ARCH, ('linear', 'linear'), attn_cfg, out_indices=(0, 1)).to(device)
    head = nn.Conv2d(sum(ARCH['embed_dims']), CLASSES, 1).to(device)
    parameters = [*host.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    result = Stability([], None, 0)
    for step in range(steps):
        x, label = (t.to(device) for t in stripes(8, size, generator))
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            fine, coarse = host(x)
            logits = head(torch.cat((fine, F.interpolate(coarse, fine.shape[-2:])), 1))
        loss = F.cross_entropy(logits.float(), label)
        result.losses.append(loss.item())
        if not torch.isfinite(loss):
            result.first_bad = step
            break
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        result.skipped += scaler.get_scale() < scale
    return result
