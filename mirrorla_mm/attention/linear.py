"""Linear attention: what a query needs to know of all other tokens is one small state."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import lean
from ..ops.backend import Backend, Heads, for_graphs, select_backend, symbolic
from ..ops.maps import check_map, to_tokens
from ..ops.options import Options
from ..ops.precision import at_least_float32, saturate, without_autocast
from ..ops.products import FAST, PLAIN, linear
from ..ops.rope import Rope
from ..ops.strips import Rows, at_once, by_strips, row_strips, strip_dtype
from .base import Attention
from .strips import attend_by_strips

State = tuple[Any, ...]
# theta, theta_k and options of the operator; all None for a method that is not the operator's.
Operator = tuple[Tensor | None, Tensor | None, Options | None]
# A Rope, or a table of the method's own with an entry for each row of tokens.
Place = Any
# Weight (C, C) or (B, C, C) and bias (C,) or (B, 1, C), if any, of ``x W + b``.
Layer = tuple[Tensor, Tensor | None]


class Plan(NamedTuple):
    """How one call runs: decided by :meth:`LinearAttention.plan` alone, and handed on from there.

    Attributes:
        backend (Backend): The implementation of the operator.
        operator (Operator): What the backend gets beside q, k and v.
        folds (bool): The projection to q and k reflects them at the angles of each image.
        strips (list[Rows], optional): Strip by strip over these rows, each projected when it is
            due; None to project and attend over the whole batch at once.
        images (int): Images that go through the strips together.
    """

    backend: Backend
    operator: Operator
    folds: bool = False
    strips: list[Rows] | None = None
    images: int = 1


class LinearAttention(Attention):
    """Attention in steps that may see the tokens part by part.

    1. :meth:`features` of queries and keys, each on its own;
    2. :meth:`survey` the queries, for methods whose state depends on all of them;
    3. :meth:`gather` keys and values to a state, and :meth:`merge` the states of two parts;
    4. :meth:`read` the state of all by each query.

    A subclass fills in those that differ from ``q (k^T v)`` over ``q . sum(k)``: often
    :meth:`features` alone. All steps take and return float32 or float64, outside autocast. On a
    CPU without gradients the tokens go through them strip by strip: keys, queries and what is
    computed from them stay in cache, and the time per token does not grow with the map. Arguments
    are those of :class:`Attention`.
    """

    # Whether :meth:`survey` has to see all queries before the first key is gathered.
    surveys = False
    # Whether :meth:`read` needs the value of each query's own token.
    reads_own_value = False
    # The matrix products of strips.
    products = PLAIN

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        plan = self.plan(x, hw_shape)
        if plan.strips is not None:
            return attend_by_strips(x.to(strip_dtype(x)), self, hw_shape, plan)
        out, v, *gate = self._attend_projected(x, hw_shape, plan)
        return self.finish(out, self.local(x, v, hw_shape), *gate)

    def fold_for_inference(self) -> None:
        """Take the matrix products that this processor runs fastest, for good."""
        self.products = FAST

    def plan(self, x: Tensor, hw_shape: tuple[int, int]) -> Plan:
        """Decide for tokens x (B, N, C) which backend runs, and whether by strips.

        Raises:
            ValueError: If the map does not hold these tokens.
        """
        if not symbolic():
            check_map(hw_shape, x.shape[1])
        q = Heads(
            (x.shape[0], self.num_heads, x.shape[1], self.head_dim), linear_dtype(x), x.device
        )
        k = q
        if self.sr is not None:
            k = q._replace(shape=(*q.shape[:2], prod(self.kv_shape(hw_shape)), self.head_dim))
        operator = self.operator(hw_shape)
        backend = select_backend(q, k, k, *operator)
        folds = self.folds(x, backend)
        if folds:
            operator = self.operator(hw_shape, folds)
        if not (backend.strips and by_strips(x) and self.sr is None and self.sees_parts(folds)):
            return Plan(backend, operator, folds)
        # Queries, keys and values of a strip live at once.
        row_bytes = 3 * hw_shape[1] * self.embed_dims * x.element_size()
        images = 1 if folds else at_once(row_bytes * hw_shape[0])
        return Plan(backend, operator, folds, row_strips(hw_shape[0], row_bytes), images)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The method itself: q of shape (B, H, N, d), k and v of (B, H, M, d) to (B, H, N, d).

        They come as :meth:`project` makes them.
        """
        operator = self.operator(hw_shape)
        plan = Plan(select_backend(q, k, v, *operator), operator)
        return self._attend(q, k, v, hw_shape, plan)

    def _attend_projected(
        self, x: Tensor, hw_shape: tuple[int, int], plan: Plan
    ) -> tuple[Tensor, ...]:
        """Project x (B, N, C) and attend: the output (B, H, N, d), v and, if any, the gate."""
        if plan.folds or (for_graphs() and self.sr is None):  # A runtime would copy what is split.
            layers = self.layers(x, plan.folds)
            q, k, v, *gate = (linear_of_images(x, *layer) for layer in layers)
        else:
            q, k, v, *gate = self.project(x, hw_shape)
        return self._attend(*map(self.split_heads, (q, k, v)), hw_shape, plan), v, *gate

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int], plan: Plan
    ) -> Tensor:
        """:meth:`attend` of what the plan projects to: where it folds, q and k come reflected."""
        place = self.place(q, hw_shape, plan)
        own = self._own_value(v, hw_shape) if self.reads_own_value else None
        return saturate(_attend_whole(q, k, v, self, place, own), v.dtype)

    def operator(self, hw_shape: tuple[int, int], folds: bool = False) -> Operator:
        """theta, theta_k and options with which the operator is this method; None if it is not.

        With ``folds``, of queries and keys that the projection has reflected.
        """
        return None, None, None

    def folds(self, x: Tensor, backend: Backend) -> bool:
        """Whether the projection of x (B, N, C) reflects at the angles of each image."""
        return False

    def sees_parts(self, folds: bool) -> bool:
        """Whether the steps can see the tokens part by part."""
        return True

    def features(self, x: Tensor, place: Place, key: bool = False) -> Tensor:
        """Features of queries, or with ``key`` of keys: (B, H, n, d) to (B, H, n, any)."""
        return x

    def survey(self, queries: Iterable[Tensor]) -> Any:
        """Summary of all queries' features, given part by part, for :meth:`gather`."""
        return None

    def gather(self, k: Tensor, v: Tensor, place: Place, survey: Any) -> State:
        """Sum the keys and values of some tokens: by default ``k^T v`` and what normalises it.

        Args:
            k (Tensor): Features of keys, shape (B, H, n, any).
            v (Tensor): Shape (B, H, n, d).
            place (Any): Their rows of :meth:`place`.
            survey (Any): From :meth:`survey`.

        Returns:
            tuple: Their part of the state.
        """
        return lean.gather(k, v, place, survey, self.products)

    def merge(self, first: State, second: State) -> State:
        """The state of two parts of the tokens together; a tuple of sums adds up."""
        if isinstance(first, lean.LinearState):
            return lean.merge(first, second)
        return tuple(a + b for a, b in zip(first, second))

    def read(self, q: Tensor, state: State, place: Place, own: Tensor | None) -> Tensor:
        """Attend from some tokens' queries to the state of all: by default ``q S / (q m)``.

        Args:
            q (Tensor): Features of queries, shape (B, H, n, any).
            state (tuple): From :meth:`gather`.
            place (Any): Their rows of :meth:`place`.
            own (Tensor, optional): Their own values (B, H, n, d), if :attr:`reads_own_value`.

        Returns:
            Tensor: Shape (B, H, n, d).
        """
        return lean.read(q, state, place, self.products)

    def place(self, q: Tensor, hw_shape: tuple[int, int], plan: Plan) -> Place:
        """The part that depends on a token's place: by default RoPE, None in a host without it."""
        if not self.rope:
            return None
        return Rope(hw_shape, self.head_dim, q, plain=not plan.backend.strips)

    def layers(self, x: Tensor, folds: bool) -> list[Layer]:
        """The projections of tokens x (B, N, C) to q, k, v and the gate.

        With ``folds``, those to q and k reflect: one for each image.
        """
        weight, bias = self.projection()
        return self.split_layers(weight.t(), bias)

    def split_layers(self, weight: Tensor, bias: Tensor | None) -> list[Layer]:
        """Parts of C columns of a packed weight (..., C, nC) and of its bias (..., nC)."""
        weights = weight.split(self.embed_dims, dim=-1)
        biases = [None] * len(weights) if bias is None else bias.split(self.embed_dims, dim=-1)
        return list(zip(weights, biases))

    def _own_value(self, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """v (B, H, M, d) at the place of each query, interpolated where it was reduced."""
        if self.sr is None:
            return v
        return self.split_heads(to_tokens(self.full_map(v.transpose(1, 2).flatten(2), hw_shape)))


@without_autocast
def _attend_whole(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    method: LinearAttention,
    place: Place,
    own: Tensor | None,
) -> Tensor:
    q = method.features(at_least_float32(q), place)
    k = method.features(at_least_float32(k), place, key=True)
    survey = method.survey([q]) if method.surveys else None
    state = method.gather(k, at_least_float32(v), place, survey)
    own = None if own is None else at_least_float32(own)
    return method.read(q, state, place, own)


def linear_of_images(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W + b`` of x (B, N, C), with one W for all images or one for each."""
    return linear(x, weight.t(), bias) if weight.dim() == 2 else torch.baddbmm(bias, x, weight)


def linear_dtype(x: Tensor) -> torch.dtype:
    """Dtype of a linear layer's output: that of x, or autocast's."""
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)
