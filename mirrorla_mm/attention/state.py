"""Attention through sums over the tokens: what a query needs of the others is one small state."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.backend import forced_backend
from ..ops.streaming import streams
from .base import Attention

State = tuple[Tensor, ...]

# What four maps of a strip may take: more than for rows of convolutions, as a strip costs some
# twenty calls and shorter ones gain nothing.
STRIP_BYTES = 8 << 20


class StateAttention(Attention):
    """Linear attention in two steps: keys and values are summed to a state that each query reads.

    A subclass fills in :meth:`gather` and :meth:`read`. As sums of a part of the tokens can be
    merged, inference on a CPU goes strip by strip over a large map: keys, queries and all that is
    made of them stay in cache, and the time per token does not grow with the map. Only values and
    their local enhancement are whole maps. Arguments are those of :class:`Attention`.
    """

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        if self.sr is None and forced_backend() is None and self.strips(x):
            return self._stream(x, hw_shape)
        return super().forward(x, hw_shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        place = self.place(q, hw_shape)
        return self.read(q, self.gather(k, v, place, k.shape[-2]), place, v)

    @abstractmethod
    def gather(self, k: Tensor, v: Tensor, place: Tensor | None, tokens: int) -> State:
        """Sum the keys and values of some tokens.

        Args:
            k (Tensor): Shape (B, H, M, d).
            v (Tensor): Shape (B, H, M, d).
            place (Tensor, optional): Their rows of :meth:`place`.
            tokens (int): How many there are in all, for methods that take means.

        Returns:
            tuple[Tensor, ...]: Their part of the state, in float32 at least.
        """

    @abstractmethod
    def read(self, q: Tensor, state: State, place: Tensor | None, own: Tensor) -> Tensor:
        """Attend from some tokens' queries to the state of all.

        Args:
            q (Tensor): Shape (B, H, N, d).
            state (tuple[Tensor, ...]): From :meth:`gather`.
            place (Tensor, optional): Their rows of :meth:`place`.
            own (Tensor): Their own values, shape (B, H, N, d); of no use where k and v are reduced.

        Returns:
            Tensor: Shape (B, H, N, d), dtype of ``q``.
        """

    def merge(self, first: State, second: State) -> State:
        """The state of two parts of the tokens together."""
        return tuple(a + b for a, b in zip(first, second))

    def place(self, q: Tensor, hw_shape: tuple[int, int]) -> Tensor | None:
        """What depends on a token's place: by default the angles of the host's RoPE, (N, d/2)."""
        return self.rope_angles(q, hw_shape)

    def strips(self, x: Tensor) -> bool:
        """Whether to work strip by strip."""
        return streams(x) and len(token_strips(x)) > 1

    def _stream(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        dims = self.embed_dims
        to_kv, to_q_gate = zip(*(_halves(packed, dims) for packed in self.projection()))
        place = self.place(x, hw_shape)
        strips = [(tokens, None if place is None else place[tokens]) for tokens in token_strips(x)]
        v, out = torch.empty_like(x), torch.empty_like(x)
        state = None
        for tokens, where in strips:
            k, values = F.linear(x[:, tokens], *to_kv).split(dims, dim=-1)
            v[:, tokens] = values
            found = self.gather(self._heads(k), self._heads(values), where, x.shape[1])
            state = found if state is None else self.merge(state, found)
        local = self.local(x, v, hw_shape)
        for tokens, where in strips:
            q, *gate = F.linear(x[:, tokens], *to_q_gate).split(dims, dim=-1)
            strip = self.read(self._heads(q), state, where, self._heads(v[:, tokens]))
            strip = strip.transpose(1, 2).flatten(2)
            if local is not None:
                strip = strip + local[:, tokens]
            out[:, tokens] = self.proj(self.modulate(strip, *gate))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, H, N, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _halves(packed: Tensor | None, dims: int) -> tuple[Tensor | None, Tensor | None]:
    """Rows of k and v, and those of q and, where there is one, the gate."""
    if packed is None:
        return None, None
    return packed[dims : 3 * dims], torch.cat((packed[:dims], packed[3 * dims :]))


def token_strips(x: Tensor) -> list[slice]:
    """Cut the tokens of x (B, N, C) so that four maps of a strip take about ``STRIP_BYTES``."""
    batch, tokens, channels = x.shape
    length = max(STRIP_BYTES // (4 * batch * channels * x.element_size()), 1)
    count = -(-tokens // length)
    bounds = [tokens * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in zip(bounds, bounds[1:])]
