import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.lean import LinearState
from ..ops.maps import resize_map, to_map
from ..ops.precision import at_least_float32
from ..registry import register_attention
from .base import Kernel, depthwise
from .linear import LinearAttention, Place, Plan
from .reflection import Reflection


@register_attention
class FLattenAttention(LinearAttention):
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

    brings = dict(lepe_kernel=0)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        focusing_factor: float = 3,
        kernel_size: int = 5,
        reflection: dict | None = None,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.focusing_factor = focusing_factor
        self.scale = nn.Parameter(torch.zeros(embed_dims))
        self.position = None
        if not self.rope:
            self.position = nn.Parameter(torch.zeros(embed_dims, *self.kv_shape(self.grid_size)))
        self.dwc = depthwise(self.head_dim, kernel_size)
        self.reflection = (
            None if reflection is None else Reflection(embed_dims, num_heads, **reflection)
        )

    def sees_parts(self, folds: bool) -> bool:
        # The angles of the reflections depend on all tokens.
        return self.reflection is None

    def place(self, q: Tensor, hw_shape: tuple[int, int], plan: Plan) -> Place:
        """The host's RoPE, else the position table of the keys, (height, width, C)."""
        if self.position is None:
            return super().place(q, hw_shape, plan)
        return resize_map(self.position.unsqueeze(0), self.kv_shape(hw_shape))[0].permute(1, 2, 0)

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        if key and self.position is not None:
            x = x + self.split_heads(place.flatten(0, 1).unsqueeze(0))
        return self.feature_map(x, key)

    def feature_map(self, x: Tensor, key: bool) -> Tensor:
        """Features of queries, or with ``key`` of keys in their place, (B, H, N, d)."""
        if self.reflection is not None:
            x = self.reflection.reflect_all(x, key)
        return focused_feature_map(x, self.head_scale(), self.focusing_factor)

    def gather(self, k: Tensor, v: Tensor, place: Place, survey: None) -> LinearState:
        return super().gather(k, v, place if self.rope else None, survey)

    def read(self, q: Tensor, state: LinearState, place: Place, own: None) -> Tensor:
        return super().read(q, state, place if self.rope else None, own)

    def head_scale(self) -> Tensor:
        """The learned scale, > 0, shape (H, 1, d)."""
        return F.softplus(at_least_float32(self.scale)).view(self.num_heads, 1, self.head_dim)

    def local_kernel(self, x: Tensor) -> Kernel:
        return self.dwc.weight.repeat(self.num_heads, 1, 1, 1), self.dwc.bias.repeat(self.num_heads)

    def full_map(self, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        if self.sr is not None:
            # The authors interpolate reduced values along the row-major sequence, not on the map.
            tokens = hw_shape[0] * hw_shape[1]
            v = F.interpolate(v.transpose(1, 2), size=tokens, mode='linear').transpose(1, 2)
        return to_map(v, hw_shape)


def focused_feature_map(x: Tensor, scale: Tensor, power: float) -> Tensor:
    """``|x| / |x^p| x^p`` of ``x = (relu(x) + 1e-6) / scale``.

    Args:
        x (Tensor): Queries or keys, shape (B, H, N, d); a vector is all heads of a token.
        scale (Tensor): Positive, shape (H, 1, d).
        power (float): The focusing factor p.

    Returns:
        Tensor: Positive, shape (B, H, N, d).
    """
    x = (F.relu(x) + 1e-6) / scale
    length = torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True)
    # The quotient does not depend on the length of x, and powers of small numbers underflow.
    powered = (x / x.detach().amax(dim=(1, 3), keepdim=True)) ** power
    return powered * (length / torch.linalg.vector_norm(powered, dim=(1, 3), keepdim=True))
