import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.linear_attention import linear_state, read_linear_state
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .base import depthwise, resize_map, to_map, to_tokens
from .reflection import Reflection
from .state import State, StateAttention


@register_attention
class FLattenAttention(StateAttention):
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

    def place(self, q: Tensor, hw_shape: tuple[int, int]) -> Tensor | None:
        """The angles of the host's RoPE, else the position table of the keys, (M, C)."""
        if self.position is None:
            return super().place(q, hw_shape)
        return to_tokens(resize_map(self.position.unsqueeze(0), self.kv_shape(hw_shape)))[0]

    def gather(self, k: Tensor, v: Tensor, place: Tensor | None, tokens: int) -> State:
        rope = place
        if self.position is not None:
            k, rope = k + place.unflatten(-1, (self.num_heads, -1)).transpose(0, 1), None
        k = self.features(k, key=True)
        return tuple(total / tokens for total in linear_state(k, v, rope))

    def read(self, q: Tensor, state: State, place: Tensor | None, own: Tensor) -> Tensor:
        rope = place if self.position is None else None
        out = self.divide(self.features(q), *state, rope)
        return saturate(out, q.dtype)

    def strips(self, x: Tensor) -> bool:
        # The angles of the reflections depend on all tokens.
        return self.reflection is None and super().strips(x)

    def features(self, x: Tensor, key: bool = False) -> Tensor:
        """The feature map of queries, or with ``key`` of keys, (B, H, N, d), reflected before."""
        if self.reflection is not None:
            x = self.reflection.reflect_all(x, key)
        return focused_feature_map(x, self.head_scale(), self.focusing_factor)

    def divide(self, q: Tensor, products: Tensor, key: Tensor, rope: Tensor | None) -> Tensor:
        """Attend from features of queries, given the means of the keys' features and products."""
        return read_linear_state(q, products, key, rope)

    def head_scale(self) -> Tensor:
        """The learned scale, > 0, shape (H, 1, d)."""
        return F.softplus(self.scale).view(self.num_heads, 1, self.head_dim)

    def local(self, x: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        if self.sr_ratio > 1:
            # The authors interpolate reduced values along the row-major sequence, not on the map.
            v = F.interpolate(v.transpose(1, 2), size=x.shape[1], mode='linear').transpose(1, 2)
        local = F.conv2d(
            to_map(v, hw_shape),
            self.dwc.weight.repeat(self.num_heads, 1, 1, 1),
            self.dwc.bias.repeat(self.num_heads),
            padding=self.dwc.padding,
            groups=self.embed_dims,
        )
        return to_tokens(local)


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
