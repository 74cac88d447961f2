import torch.nn.functional as F
from torch import Tensor

from ..ops import apply_rope
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..registry import register_attention
from .state import State, StateAttention


@register_attention
class HydraAttention(StateAttention):
    """Attention with as many heads as channels and the cosine similarity as kernel.

    ``out = q/|q| * sum_t k_t/|k_t| * v_t``, channel by channel, with norms over all C channels
    (Bolya et al., "Hydra Attention: Efficient Attention with Many Heads", ECCV Workshops 2022). In
    the quadratic form channel c has the map ``A_c[t, s] = q_tc k_sc`` of the unit vectors. The
    result does not depend on ``num_heads`` unless a host turns the heads by RoPE.

    Complexity O(N C) in all. Shapes are those of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def gather(self, k: Tensor, v: Tensor, place: Tensor | None, tokens: int) -> State:
        return (hydra_state(k, v, place),)

    def read(self, q: Tensor, state: State, place: Tensor | None, own: Tensor) -> Tensor:
        return read_hydra_state(q, *state, place)


@without_autocast
def hydra_state(k: Tensor, v: Tensor, rope: Tensor | None) -> Tensor:
    """``sum_t k_t/|k_t| * v_t``: (B, H, 1, d) from (B, H, M, d), in float32 at least."""
    return (_unit(k, rope) * at_least_float32(v)).sum(dim=-2, keepdim=True)


@without_autocast
def read_hydra_state(q: Tensor, state: Tensor, rope: Tensor | None) -> Tensor:
    """``q/|q| * state`` of shape (B, H, N, d), dtype of ``q``."""
    return saturate(_unit(q, rope) * state, q.dtype)


def _unit(x: Tensor, rope: Tensor | None) -> Tensor:
    x = F.normalize(at_least_float32(x), dim=(1, 3))
    return x if rope is None else apply_rope(x, rope)
