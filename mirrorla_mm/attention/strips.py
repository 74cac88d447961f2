"""Linear attention over a map strip by strip, see :mod:`mirrorla_mm.ops.strips`."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from torch import Tensor

from ..ops.lean import LinearState, read_in
from ..ops.maps import to_map
from ..ops.precision import at_least_float32, without_autocast
from ..ops.products import Affine, Linear, affine_of
from ..ops.strips import Rows

if TYPE_CHECKING:
    from .linear import Layer, LinearAttention, Place, Plan, State


@without_autocast
def attend_by_strips(
    x: Tensor, method: LinearAttention, hw_shape: tuple[int, int], plan: Plan
) -> Tensor:
    """Project the tokens x (B, N, C), attend and project the output: (B, N, C)."""
    out = x.new_empty(x.shape)
    if not len(x):
        return out
    place = method.place(x, hw_shape, plan)
    for images, result in zip(x.split(plan.images), out.split(plan.images)):
        StripPass(images, method, hw_shape, plan, place, result).run(plan.strips)
    return out


class StripPass:
    """One pass of an attention's steps over some images, strip by strip.

    Each strip is projected when it is due, and what a method here makes of it is gone before the
    next one starts. Until a strip of the output is written, ``out`` keeps its queries: one map less
    at the peak.

    Args:
        x (Tensor): Tokens of some images, shape (b, N, C). More than one image come with a single
            strip.
        method (LinearAttention): The attention.
        hw_shape (tuple[int, int]): Height and width of the grid, N = height * width.
        plan (Plan): How the call runs.
        place (Any): From the attention's ``place``, of all tokens.
        out (Tensor): The output, shape (b, N, C), contiguous.
    """

    def __init__(
        self,
        x: Tensor,
        method: LinearAttention,
        hw_shape: tuple[int, int],
        plan: Plan,
        place: Place,
        out: Tensor,
    ) -> None:
        self.x, self.out, self.place = x, out, place
        self.method, self.hw_shape = method, hw_shape
        self.to_q, self.to_k, self.to_v, *self.to_gate = self._projections(plan.folds)
        self.to_out = affine_of(method.proj, x.dtype)
        self.v = x.new_empty(x.shape)
        self.kernel = method.local_kernel(x)
        if self.kernel is not None:
            weight, bias = self.kernel
            self.kernel = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        self.surveyed: dict[Rows, Tensor] = {}

    def run(self, strips: list[Rows]) -> None:
        """Write the output of all strips."""
        method = self.method
        survey = method.survey(map(self.survey, strips)) if method.surveys else None
        state = reduce(method.merge, (self.gather(rows, survey) for rows in strips))
        if isinstance(state, LinearState):  # Sums are in float32; what reads them need not be.
            state = read_in(state, self.x.dtype)
        for rows in strips:
            self.to_out(self.modulate(rows, state), out=self.of(self.out, rows))

    def survey(self, rows: Rows) -> Tensor:
        """Features of a strip's queries, kept until they are read from."""
        q = self.queries(rows)
        if q.dtype == self.x.dtype:  # They lie in ``out`` where features are computed in place.
            self.surveyed[rows] = q
        else:
            place = self.method.split_heads(self.by_image(self.of(self.out, rows)))
            fits = place.shape == q.shape
            self.surveyed[rows] = place.copy_(q) if fits else q.to(self.x.dtype)
        return q

    def gather(self, rows: Rows, survey: Tensor | None) -> State:
        """The part of the state that a strip's keys and values make; the values are kept."""
        place = self.place_of(rows)
        k = self.method.features(self.heads(self.to_k(self.of(self.x, rows))), place, key=True)
        v = self.heads(self.to_v(self.of(self.x, rows), out=self.of(self.v, rows)))
        return self.method.gather(k, v, place, survey)

    def modulate(self, rows: Rows, state: State) -> Tensor:
        """Read from the state, enhance and gate a strip: a matrix (b * n, C)."""
        method, local = self.method, None
        if self.kernel is not None:
            local = method.local_rows(to_map(self.v, self.hw_shape), self.kernel, rows)
        gate = [self.by_image(layer(self.of(self.x, rows))) for layer in self.to_gate]
        return method.modulate(self.read(rows, state), local, *gate).flatten(0, 1)

    def read(self, rows: Rows, state: State) -> Tensor:
        """Attend from a strip's queries: heads (b, H, n, d)."""
        own = self.heads(self.of(self.v, rows)) if self.method.reads_own_value else None
        out = self.method.read(self.queries(rows), state, self.place_of(rows), own)
        return out.to(self.x.dtype)

    def queries(self, rows: Rows) -> Tensor:
        """Features of a strip's queries: heads (b, H, n, any)."""
        if rows in self.surveyed:
            return at_least_float32(self.surveyed.pop(rows))
        q = self.heads(self.to_q(self.of(self.x, rows), out=self.of(self.out, rows)))
        return self.method.features(q, self.place_of(rows))

    def of(self, tokens: Tensor, rows: Rows) -> Tensor:
        """A strip of tokens (b, N, C) as a matrix (b * n, C)."""
        return tokens[:, rows.tokens(self.hw_shape[1])].flatten(0, 1)

    def by_image(self, tokens: Tensor) -> Tensor:
        """Undo the flattening of :meth:`of`: (b * n, C) to (b, n, C)."""
        return tokens.unflatten(0, (len(self.x), -1))

    def heads(self, tokens: Tensor) -> Tensor:
        """A matrix of tokens (b * n, C) as heads (b, H, n, d), float32 at least."""
        return at_least_float32(self.method.split_heads(self.by_image(tokens)))

    def place_of(self, rows: Rows) -> Place:
        """A strip of the method's ``place``."""
        return None if self.place is None else self.place[slice(*rows)]

    def _projections(self, folds: bool) -> list[Affine]:
        """To q, k, v and the gate.

        Where no image changes the layer, deploy mode's own makes its products once, and an adapter
        round it is called.
        """
        packed, channels = self.method.qkv, self.method.embed_dims
        whole = type(packed) is not Linear and self.method.projection()[0] is packed.weight
        return [
            affine_of(packed, self.x.dtype, slice(i * channels, (i + 1) * channels))
            if whole and not (folds and i < 2)
            else self._affine(layer)
            for i, layer in enumerate(self.method.layers(self.x, folds))
        ]

    def _affine(self, layer: Layer) -> Affine:
        # Images that have projections of their own come one by one.
        weight, bias = layer
        bias = None if bias is None else bias.flatten().to(self.x.dtype)
        return self.method.products.affine(weight.flatten(0, -2).t().to(self.x.dtype), bias)
