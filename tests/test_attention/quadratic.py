"""Hold an attention against a form that writes its N x N matrix out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirrorla_mm.ops import apply_rope, rope_2d

DIMS, HEADS = 16, 2
HW = (3, 5)
WEAK = dict(lam=0.3, alpha_max=0.9)  # A reflection whose options are not the defaults.


def randomised(cls: type[nn.Module], **options) -> nn.Module:
    """An attention in float64 with no parameter at the 0 it starts from."""
    attention = cls(DIMS, HEADS, **options).double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.5)
    return attention


def tokens(hw: tuple[int, int] = HW) -> Tensor:
    return torch.randn(2, hw[0] * hw[1], DIMS, dtype=torch.float64, requires_grad=True)


def projected(attention: nn.Module, x: Tensor) -> list[Tensor]:
    """q, k, v and, where there is one, the gate."""
    return list(F.linear(x, attention.qkv.weight, attention.qkv.bias).split(DIMS, dim=-1))


def split(x: Tensor) -> Tensor:
    """(B, N, C) to (B, H, N, d)."""
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """(B, H, N, d) to (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


def turned(attention: nn.Module, *heads: Tensor) -> list[Tensor]:
    """What RoPE makes of heads (B, H, N, d), where the host has it."""
    angle = rope_2d(HW, DIMS // HEADS, dtype=torch.float64)
    return [apply_rope(x, angle) if attention.rope else x for x in heads]


def divided(scores: Tensor, kernel: Tensor | None = None) -> Tensor:
    """Scores over N, each row over the mean of its kernel, which is the scores before a turn."""
    mean = (scores if kernel is None else kernel).mean(-1, keepdim=True)
    return scores / scores.shape[-1] / (mean + 1e-6)


def local(attention, v):
    """A convolution of each head with the same weights."""
    maps = v.transpose(1, 2).reshape(-1, DIMS // HEADS, *HW)
    out = F.conv2d(maps, attention.dwc.weight, attention.dwc.bias, padding=2, groups=DIMS // HEADS)
    return out.reshape(len(v), DIMS, -1).transpose(1, 2)


def reflected(attention, q, k):
    """Both reflections with their matrices written out."""
    unit = attention.reflection.u / attention.reflection.u.norm()
    mirror = torch.eye(DIMS, dtype=q.dtype) - 2 * torch.outer(unit, unit)
    return map(merge, attention.reflection(split(q @ mirror), split(k @ mirror)))


def assert_same(attention: nn.Module, by_hand: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Output and the gradients of the tokens and all parameters agree."""
    x = tokens()
    out, expected = attention(x, HW), by_hand(attention, x)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-9)
    leaves = [x, *attention.parameters()]
    seed = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, leaves, seed), torch.autograd.grad(expected, leaves, seed)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
