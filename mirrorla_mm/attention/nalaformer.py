import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import register_attention
from .linear import LinearAttention, Place
from .polaformer import signed_powers


@register_attention
class NaLaAttention(LinearAttention):
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

    brings = dict(gate=True, lepe_kernel=5, out_norm=True)

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        if key:
            return signed_powers(x, 3)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return signed_powers(F.normalize(x, dim=-1), 3 * (0.5 + torch.tanh(norm)))
