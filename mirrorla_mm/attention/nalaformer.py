import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.linear_attention import linear_state, read_linear_state
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .state import State, StateAttention


@register_attention
class NaLaAttention(StateAttention):
    """Norm-aware linear attention.

    The direction of a query is raised to a power that grows with its norm, which the normaliser
    would otherwise cancel: ``phi(q) = [relu(q/|q|), relu(-q/|q|)]^(3 (1/2 + tanh |q|))`` and
    ``phi(k) = [relu(k^3), relu(-k^3)]`` (Meng et al., "Norm x Direction: Restoring the Missing
    Query Norm in Vision Linear Attention", ICML 2026, arXiv 2506.21137; formulas as in the authors'
    released code). The output is normalised and multiplied by the SiLU of a projected gate, and v
    is enhanced by a 5x5 depth-wise convolution, whatever the host has. An all-zero query gives 0,
    where the authors' code divides 0 by 0.

    Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def __init__(self, embed_dims: int, num_heads: int, **kwargs) -> None:
        own = dict(gate=True, lepe_kernel=5, out_norm=True)
        super().__init__(embed_dims, num_heads, **{**kwargs, **own})

    def place(self, q: Tensor, hw_shape: tuple[int, int]) -> Tensor | None:
        rope = self.rope_angles(q, hw_shape)
        return None if rope is None else torch.cat((rope, rope), dim=-1)

    def gather(self, k: Tensor, v: Tensor, place: Tensor | None, tokens: int) -> State:
        return tuple(total / tokens for total in linear_state(cubed_keys(k), v, place))

    def read(self, q: Tensor, state: State, place: Tensor | None, own: Tensor) -> Tensor:
        return saturate(read_linear_state(norm_aware_queries(q), *state, place), q.dtype)


@without_autocast
def norm_aware_queries(q: Tensor) -> Tensor:
    """Features of queries (B, H, N, d): >= 0, shape (B, H, N, 2d), float32 at least."""
    q = at_least_float32(q)
    norm = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    direction = F.normalize(q, dim=-1)
    parts = torch.cat((F.relu(direction), F.relu(-direction)), dim=-1)
    return parts ** (3 * (0.5 + torch.tanh(norm)))


@without_autocast
def cubed_keys(k: Tensor) -> Tensor:
    """Features of keys (B, H, N, d): >= 0, shape (B, H, N, 2d), float32 at least."""
    k = at_least_float32(k) ** 3
    return torch.cat((F.relu(k), F.relu(-k)), dim=-1)
