import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import linear_attention
from ..ops.precision import at_least_float32, without_autocast
from ..registry import register_attention
from .base import Attention, depthwise, resize_map, to_map, to_tokens
from .reflection import Reflection


@register_attention
class FLattenAttention(Attention):
    """Focused linear attention.

    ``phi(x) = f(relu(x) / s)`` with ``f(x) = |x| / |x^p| x^p``, which turns a vector towards its
    largest axes and keeps its length (Han et al., "FLatten Transformer: Vision Transformer using
    Focused Linear Attention", ICCV 2023); the norms are over all C channels, ``s`` is a learned
    scale. Keys carry a learned position table, and a depth-wise convolution of v, shared
    by the heads, restores the rank of the map; it replaces the host's ``lepe_kernel``. In a
    host with RoPE that takes the table's place.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        focusing_factor (float): The power p. Defaults to 3.
        kernel_size (int): Size of the depth-wise convolution. Defaults to 5.
        reflection (dict, optional): Options of
            :class:`~mirrorla_mm.attention.reflection.Reflection`, which then reorients q and k
            right before the ReLU. None for no reflection.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        focusing_factor: float = 3,
        kernel_size: int = 5,
        reflection: dict | None = None,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **{**kwargs, 'lepe_kernel': 0})
        self.focusing_factor = focusing_factor
        self.scale = nn.Parameter(torch.zeros(embed_dims))
        self.position = None
        if not self.rope:
            self.position = nn.Parameter(torch.zeros(embed_dims, *self.kv_shape(self.grid_size)))
        self.dwc = depthwise(self.head_dim, kernel_size)
        self.reflection = (
            None if reflection is None else Reflection(embed_dims, num_heads, **reflection)
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        k = self.locate(k, hw_shape)
        if self.reflection is not None:
            q, k = self.reflection.reflect_all(q, k)
        q, k = (focused_feature_map(x, self.head_scale(), self.focusing_factor) for x in (q, k))
        return linear_attention(q, k, v, self.rope_angles(q, hw_shape))

    def head_scale(self) -> Tensor:
        """The learned scale, > 0, shape (H, 1, d)."""
        return F.softplus(self.scale).view(self.num_heads, 1, self.head_dim)

    def locate(self, k: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Add the position table to the keys, shape (B, H, M, d)."""
        if self.position is None:
            return k
        table = resize_map(self.position.unsqueeze(0), self.kv_shape(hw_shape))
        return k + to_tokens(table).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def enhance(self, out: Tensor, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        if self.sr_ratio > 1:
            # The authors interpolate reduced values along the row-major sequence, not on the map.
            v = F.interpolate(v.transpose(1, 2), size=out.shape[1], mode='linear').transpose(1, 2)
        local = F.conv2d(
            to_map(v, hw_shape),
            self.dwc.weight.repeat(self.num_heads, 1, 1, 1),
            self.dwc.bias.repeat(self.num_heads),
            padding=self.dwc.padding,
            groups=self.embed_dims,
        )
        return out + to_tokens(local)


@without_autocast
def focused_feature_map(x: Tensor, scale: Tensor, power: float) -> Tensor:
    """``|x| / |x^p| x^p`` of ``x = (relu(x) + 1e-6) / scale``, in float32 at least.

    Args:
        x (Tensor): Queries or keys, shape (B, H, N, d); a vector is all heads of a token.
        scale (Tensor): Positive, shape (H, 1, d).
        power (float): The focusing factor p.

    Returns:
        Tensor: Positive, shape (B, H, N, d), float32 at least.
    """
    x = (F.relu(at_least_float32(x)) + 1e-6) / scale
    length = torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True)
    # The quotient does not depend on the length of x, and powers of small numbers underflow.
    powered = (x / x.detach().amax(dim=(1, 3), keepdim=True)) ** power
    return powered * (length / torch.linalg.vector_norm(powered, dim=(1, 3), keepdim=True))
