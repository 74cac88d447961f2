import math

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import apply_rope
from ..ops.precision import at_least_float32, without_autocast
from ..registry import register_attention
from .base import to_tokens
from .state import State, StateAttention


@register_attention
class LinearAngularAttention(StateAttention):
    """The linear part of Castling-ViT's angular kernel.

    The angular kernel ``1 - angle(q, k) / pi`` is ``1/2 + arcsin(cos(q, k)) / pi``; its first-order
    part gives ``out = 1/2 v + 1/pi q/|q| (sum_t k_t/|k_t|^T v_t)``, which is scaled to unit length
    in each head before a convolution of v along the token sequence is added (You et al.,
    "Castling-ViT: Compressing Self-Attention via Switching Towards Linear-Angular Attention During
    Vision Transformer Inference", CVPR 2023). As in the authors' code the constant half
    weighs the token's own value only. The sparse softmax branch beside it is left out: it is
    quadratic. The paper drops it at inference; the released code does not. Where the host reduces k
    and v, the token's own value is interpolated from them.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`. The convolution replaces the host's
    ``lepe_kernel``.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        kernel_size (int): Tokens that the convolution of a head sees. Defaults to 9.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def __init__(self, embed_dims: int, num_heads: int, kernel_size: int = 9, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **{**kwargs, 'lepe_kernel': 0})
        self.dwc = nn.Conv2d(
            num_heads,
            num_heads,
            (kernel_size, 1),
            padding=(kernel_size // 2, 0),
            groups=num_heads,
            bias=False,
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        own = self.full_map(v.transpose(1, 2).flatten(2), hw_shape)
        own = to_tokens(own).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        place = self.place(q, hw_shape)
        return self.read(q, self.gather(k, v, place, k.shape[-2]), place, own)

    def gather(self, k: Tensor, v: Tensor, place: Tensor | None, tokens: int) -> State:
        return (angular_state(k, v, place),)

    def read(self, q: Tensor, state: State, place: Tensor | None, own: Tensor) -> Tensor:
        return read_angular_state(q, *state, own, place)

    def local(self, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        # One row of tokens in channels-last memory, which the convolution takes without a copy.
        row = to_tokens(self.full_map(v, hw_shape)).transpose(1, 2).unsqueeze(2)
        # The taps of a head, for each of its channels.
        weight = self.dwc.weight.repeat_interleave(self.head_dim, dim=0).transpose(2, 3)
        local = F.conv2d(row, weight, padding=self.dwc.padding[::-1], groups=self.embed_dims)
        return to_tokens(local)


@without_autocast
def angular_state(k: Tensor, v: Tensor, rope: Tensor | None) -> Tensor:
    """``sum_t k_t/|k_t|^T v_t``: (B, H, d, d) from (B, H, M, d), in float32 at least."""
    return _unit(k, rope).transpose(-2, -1) @ at_least_float32(v)


@without_autocast
def read_angular_state(q: Tensor, state: Tensor, own: Tensor, rope: Tensor | None) -> Tensor:
    """``1/2 own + 1/pi q/|q| state``, scaled to length 1 in each head (0 where all values are 0).

    Args:
        q (Tensor): Shape (B, H, N, d).
        state (Tensor): From :func:`angular_state`.
        own (Tensor): The value of each query's own token, shape (B, H, N, d).
        rope (Tensor, optional): Angles from :func:`~mirrorla_mm.ops.rope_2d`, shape (N, d/2).

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``q``.
    """
    attended = 0.5 * at_least_float32(own) + _unit(q, rope) @ (state / math.pi)
    return F.normalize(attended, dim=-1).to(q.dtype)


def _unit(x: Tensor, rope: Tensor | None) -> Tensor:
    x = F.normalize(at_least_float32(x), dim=-1)
    return x if rope is None else apply_rope(x, rope)
