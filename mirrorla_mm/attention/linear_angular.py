import math

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.maps import to_tokens
from ..ops.strips import Rows, conv_rows
from ..registry import register_attention
from .base import Kernel
from .linear import LinearAttention, Place, State


@register_attention
class LinearAngularAttention(LinearAttention):
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

    brings = dict(lepe_kernel=0)
    reads_own_value = True

    def __init__(self, embed_dims: int, num_heads: int, kernel_size: int = 9, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.dwc = nn.Conv2d(
            num_heads,
            num_heads,
            (kernel_size, 1),
            padding=(kernel_size // 2, 0),
            groups=num_heads,
            bias=False,
        )

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        x = F.normalize(x, dim=-1)
        return x if place is None else place(x)

    def gather(self, k: Tensor, v: Tensor, place: Place, survey: None) -> State:
        return (k.transpose(-2, -1) @ v,)

    def read(self, q: Tensor, state: State, place: Place, own: Tensor) -> Tensor:
        """Scaled to length 1 in each head; 0 where all values are 0."""
        return F.normalize(0.5 * own + q @ (state[0] / math.pi), dim=-1)

    def local_kernel(self, x: Tensor) -> Kernel:
        # The taps of a head, for each of its channels.
        return self.dwc.weight.repeat_interleave(self.head_dim, dim=0), None

    def local_rows(self, v: Tensor, kernel: Kernel, rows: Rows) -> Tensor:
        width = v.shape[3]
        sequence = v.flatten(2).unsqueeze(-1)  # A map of one token a row.
        rows = Rows(rows.start * width, rows.stop * width)
        return to_tokens(conv_rows(sequence, *kernel, rows, sequence.shape[2], groups=v.shape[1]))
