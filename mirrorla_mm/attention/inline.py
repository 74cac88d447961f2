from torch import Tensor, nn

from ..ops.maps import to_tokens
from ..ops.strips import Rows, conv_rows
from ..registry import register_attention
from .base import Kernel
from .linear import LinearAttention, Place, State


@register_attention
class InLineAttention(LinearAttention):
    """Injective linear attention with a local residual.

    Scores are normalised by subtraction instead of division, so that different queries keep
    different maps: ``A = q k^T / (N sqrt(d)) + (1 - q mean(k)^T / sqrt(d)) / N`` whose rows sum to
    1 (Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024,
    Eq. 5, identity kernel). A 3x3 convolution of v, with weights that a small network predicts
    from the mean token, adds local modelling; it replaces the host's ``lepe_kernel``. Scores may be
    negative, so nothing is clipped and no reflection applies.

    As the products sum up, ``out = mean(v) + q C / sqrt(d)`` with the covariance
    ``C = mean(k^T v) - mean(k)^T mean(v)``. Complexity O(N d^2) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.
    """

    brings = dict(lepe_kernel=0)

    def __init__(self, embed_dims: int, num_heads: int, **kwargs) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.residual = nn.Sequential(
            nn.Conv1d(embed_dims, embed_dims, 1, groups=num_heads),
            nn.GELU(),
            nn.Conv1d(embed_dims, 9 * embed_dims, 1, groups=num_heads),
        )

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        return x if place is None else place(x)

    def gather(self, k: Tensor, v: Tensor, place: Place, survey: None) -> State:
        """Sums of ``k^T v``, k and v, and the number of tokens."""
        sums = (t.sum(dim=-2, keepdim=True) for t in (k, v))
        return k.transpose(-2, -1) @ v, *sums, k.shape[-2]

    def read(self, q: Tensor, state: State, place: Place, own: None) -> Tensor:
        *sums, tokens = state
        products, key, value = (total / tokens for total in sums)
        covariance = products - key.transpose(-2, -1) @ value
        return value + q @ (covariance * q.shape[-1] ** -0.5)

    def local_kernel(self, x: Tensor) -> Kernel:
        """A convolution for each image: weight (B*C, 1, 3, 3)."""
        mean = x.mean(dim=1).unsqueeze(-1).to(self.residual[0].weight.dtype)
        return self.residual(mean).view(-1, 1, 3, 3), None

    def local_rows(self, v: Tensor, kernel: Kernel, rows: Rows) -> Tensor:
        if v.shape[0] == 0:
            return to_tokens(v)
        # One group for each image and channel.
        images = v.reshape(1, -1, *v.shape[2:])
        local = conv_rows(images, *kernel, rows, v.shape[2], groups=images.shape[1])
        return to_tokens(local.view(v.shape[0], -1, *local.shape[2:]))
