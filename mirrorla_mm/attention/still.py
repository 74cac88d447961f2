import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops.backend import plain_form
from ..ops.np_map import householder, np_map
from ..ops.precision import at_least_float32, without_autocast
from ..ops.products import Linear
from ..ops.rope import Rope
from ..ops.still import exact_pairs, one_denominator, still_attention
from ..ops.windows import Windows
from ..registry import register_attention
from .base import Attention
from .reflection import Reflection

FEATURE_MAPS = ('np', 'np-mirror', 'relu-mirror')
# The gate starts at sigmoid(2) = 0.88: nearly open, and its gradient has not vanished.
OPEN = 2.0


@register_attention
class STILLAttention(Attention):
    """Exact attention to near and to salient tokens, linear attention to the rest.

    Each query attends by softmax to its own window and to the most salient tokens of every window,
    those that attend most to themselves, and to all others by linear attention; both share one
    denominator (:mod:`mirrorla_mm.ops.still`). The method is STILL's (Meng et al., arXiv
    2602.02180), made to keep what a softmax model has learned; its form for images is ours. RoPE
    turns q and k before all else.

    With ``top_k = window**2`` and no bound it is softmax attention over all tokens, with
    ``top_k = 0`` window attention plus linear attention. Complexity
    O(N (window^2 + max_selected + d) d) per head. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        window (int): Side of a window in tokens; a map of any size is padded. Defaults to 7.
        top_k (int): Salient tokens of a window, per head. Defaults to 4.
        max_selected (int, optional): Largest number of salient tokens of an image, per head, which
            makes the cost linear. None for no bound. Defaults to 64.
        feature_map (str): ``'np'``: STILL's norm-preserving map behind a learned reflection and
            matrix of each head, q and k apart; ``'np-mirror'``: behind MirrorLA's reflections,
            which keep norms across heads, so each head is rescaled too; ``'relu-mirror'``: the
            ReLU of these. Defaults to ``'np'``.
        linear_gate (bool): Multiply the linear part of the numerator by ``sigmoid(linear(x))``.
            Defaults to True.
        reflection (dict, optional): Options of
            :class:`~mirrorla_mm.attention.reflection.Reflection`, for the maps that have it.
        naive (bool): Write the N x N matrices out: the same numbers for O(N^2) memory. Defaults to
            False.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.

    Raises:
        ValueError: If a number is out of its range or the feature map is unknown.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window: int = 7,
        top_k: int = 4,
        max_selected: int | None = 64,
        feature_map: str = 'np',
        linear_gate: bool = True,
        reflection: dict | None = None,
        naive: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        numbers = (window, top_k, 1 if max_selected is None else max_selected)
        if any(type(number) is not int for number in numbers):
            raise ValueError(
                'STILLAttention needs whole numbers for window, top_k and max_selected, got '
                f'{window}, {top_k} and {max_selected}.'
            )
        if window < 1 or top_k < 0 or (max_selected is not None and max_selected < 1):
            raise ValueError(
                'STILLAttention needs window >= 1, top_k >= 0 and max_selected >= 1 or None, got '
                f'{window}, {top_k} and {max_selected}.'
            )
        if feature_map not in FEATURE_MAPS:
            raise ValueError(
                f"Unknown feature_map '{feature_map}' of STILLAttention; choose from "
                f'{", ".join(FEATURE_MAPS)}.'
            )
        self.windows = Windows(window, top_k, max_selected, self.sr_ratio)
        self.feature_map = feature_map
        self.naive = naive
        self.linear_gate = Linear(embed_dims, embed_dims) if linear_gate else None
        if linear_gate:
            nn.init.zeros_(self.linear_gate.weight)
            nn.init.constant_(self.linear_gate.bias, OPEN)
        if feature_map == 'np':
            self.map_q = HeadMap(num_heads, self.head_dim)
            self.map_k = HeadMap(num_heads, self.head_dim)
            # Tied at first, so that reflected queries and keys have the products of unreflected.
            self.map_k.load_state_dict(self.map_q.state_dict())
        else:
            self.reflection = Reflection(embed_dims, num_heads, **(reflection or {}))

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        q, k, v, *gate = self.project(x, hw_shape)
        heads = map(self.split_heads, (q, k, v))
        out = self.attend(*heads, hw_shape, self._linear_gate(x))
        return self.finish(out, self.local(x, v, hw_shape), *gate)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hw_shape: tuple[int, int],
        linear_gate: Tensor | None = None,
    ) -> Tensor:
        """Attend, with one denominator for the exact and for the linear part.

        Args:
            q (Tensor): Queries, shape (B, H, N, d).
            k (Tensor): Keys, shape (B, H, M, d); M < N where they are reduced.
            v (Tensor): Values, shape (B, H, M, d).
            hw_shape (tuple[int, int]): Height and width of the map of queries in tokens.
            linear_gate (Tensor, optional): Factors of the linear part, shape (B, H, N, d). Defaults
                to 1.

        Returns:
            Tensor: Shape (B, H, N, d), dtype of ``v``.
        """
        if self.rope:
            turn = Rope(hw_shape, self.head_dim, q, plain=plain_form())
            q, k = turn(at_least_float32(q)), turn(at_least_float32(k))
        features = _features(q, self), _features(k, self, True)
        if self.naive:
            exact = exact_pairs(q, k, hw_shape, self.windows)
            return one_denominator(q, k, v, *features, exact, ~exact, linear_gate)
        return still_attention(q, k, v, *features, hw_shape, self.windows, linear_gate)

    def features(self, x: Tensor, key: bool = False) -> Tensor:
        """Map queries or keys to the features of the linear part.

        Args:
            x (Tensor): After the position embedding, float32 at least, shape (B, H, n, d).
            key (bool): Whether they are keys. Defaults to False.

        Returns:
            Tensor: >= 0, shape (B, H, n, 2d), with ``relu-mirror`` (B, H, n, d).
        """
        if self.feature_map == 'np':
            return np_map(x, (self.map_k if key else self.map_q)(x))
        reflected = self.reflection.reflect_all(x, key)
        if self.feature_map == 'np-mirror':
            return np_map(x, reflected)
        # Products of features on the scale of the logits.
        return F.relu(reflected) * self.head_dim**-0.25

    def _linear_gate(self, x: Tensor) -> Tensor | None:
        if self.linear_gate is None:
            return None
        return self.split_heads(at_least_float32(self.linear_gate(x)).sigmoid())


@without_autocast
def _features(x: Tensor, method: STILLAttention, key: bool = False) -> Tensor:
    return method.features(at_least_float32(x), key)


class HeadMap(BaseModule):
    """``f(x) = W H x`` of each head, with a learned matrix W and a learned reflection H.

    Args:
        num_heads (int): Number of heads h.
        head_dim (int): Channels d of a head.

    Source: Meng et al., "STILL", arXiv 2602.02180.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(head_dim).repeat(num_heads, 1, 1))
        # Weight decay leaves out what has this name.
        self.reflection = nn.Parameter(torch.randn(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Turn queries or keys.

        Args:
            x (Tensor): Float32 at least, shape (B, h, n, d).

        Returns:
            Tensor: Of the same shape.
        """
        return x @ (at_least_float32(self.weight) @ householder(self.reflection)).mT
