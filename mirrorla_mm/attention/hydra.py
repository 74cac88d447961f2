import torch.nn.functional as F
from torch import Tensor

from ..registry import register_attention
from .linear import LinearAttention, Place, State


@register_attention
class HydraAttention(LinearAttention):
    """Attention with as many heads as channels and the cosine similarity as kernel.

    ``out = q/|q| * sum_t k_t/|k_t| * v_t``, channel by channel, with norms over all C channels
    (Bolya et al., "Hydra Attention: Efficient Attention with Many Heads", ECCV Workshops 2022). In
    the quadratic form channel c has the map ``A_c[t, s] = q_tc k_sc`` of the unit vectors. The
    result does not depend on ``num_heads`` unless a host turns the heads by RoPE.

    Complexity O(N C) in all. Shapes are those of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        x = F.normalize(x, dim=(1, 3))
        return x if place is None else place(x)

    def gather(self, k: Tensor, v: Tensor, place: Place, survey: None) -> State:
        return ((k * v).sum(dim=-2, keepdim=True),)

    def read(self, q: Tensor, state: State, place: Place, own: None) -> Tensor:
        return q * state[0]
