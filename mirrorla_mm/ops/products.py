"""Matrix products on a CPU, each in the way that this processor runs fastest.

There are two libraries of matrix products in torch, MKL and oneDNN. Which one is faster depends on
the processor, by a factor of two on AMD's, and on the shape. Results differ by rounding alone.

- :class:`Linear`, with gradients: a rule for the processor, the same at each start, so that a run
  can be repeated. Linear layers of this package are of this class.
- :class:`FastLinear` and :data:`FAST`, in deploy mode: the ways are timed once for each shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backend import is_single_on_cpu
from .processor import has_onednn, has_slow_mkl
from .strips import at_once, by_strips, strip_dtype

# From tokens (n, C) to tokens (n, C'), written into ``out`` if given.
Affine = Callable[..., Tensor]
ROUNDS = 5
# Numbers of an input: torch leaves 1x1 convolutions that are not larger to MKL too.
SMALL = 20480
ALL = slice(None)


class Products(NamedTuple):
    """The matrix products of a linear attention.

    Attributes:
        affine: Makes a function of tokens from a weight (C', C) and an optional bias (C',).
        gather: Two features of tokens (B, H, n, d) and (B, H, n, e) to the sums over the tokens
            ``k^T v``, shape (B, H, d, e).
        read: Features (B, H, n, d) and a state (B, H, d, e) to (B, H, n, e).
    """

    affine: Callable[[Tensor, Tensor | None], Affine]
    gather: Callable[[Tensor, Tensor], Tensor]
    read: Callable[[Tensor, Tensor], Tensor]


def plain_affine(weight: Tensor, bias: Tensor | None) -> Affine:
    """The better of torch's public ways, by a rule for the processor."""
    return (convolution if _mkl_is_slow(weight) else matrix)(weight, bias)


def matrix(weight: Tensor, bias: Tensor | None) -> Affine:
    """torch's own product: MKL's in single precision."""
    weight = weight.t()

    def run(x: Tensor, out: Tensor | None = None) -> Tensor:
        if bias is None:
            return torch.mm(x, weight, out=out)
        return torch.addmm(bias, x, weight, out=out)

    return run


def convolution(weight: Tensor, bias: Tensor | None) -> Affine:
    """A 1x1 convolution of a channels-last map: oneDNN's product, with gradients."""
    kernel = weight.reshape(*weight.shape, 1, 1)

    def run(x: Tensor, out: Tensor | None = None) -> Tensor:
        y = F.conv2d(_as_row(x), kernel, bias).permute(0, 2, 3, 1).flatten(0, 2)
        return y if out is None else out.copy_(y)

    return run


def packed(weight: Tensor, bias: Tensor | None) -> Affine:
    """oneDNN's product with a weight in the blocked layout that its kernels read.

    torch has no public name for it; :func:`affine_ways` leaves it out where the private one is
    gone.
    """
    kernel = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def run(x: Tensor, out: Tensor | None = None) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x, kernel, bias, 'none', [], None)
        return y if out is None else out.copy_(y)

    return run


def _mkl_is_slow(weight: Tensor) -> bool:
    """Whether a convolution multiplies by this weight faster."""
    return (
        has_slow_mkl()
        and has_onednn(weight.dtype)
        and torch.get_num_threads() > 1  # torch leaves 1x1 convolutions of one thread to MKL too
        and not torch.are_deterministic_algorithms_enabled()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` in the better of torch's public ways, with gradients.

    In single precision on a CPU that may be a 1x1 convolution. Compilers, exporters and autocast
    get ``F.linear``, and so do tensors that are sharded, quantised, sparse or nested.

    Args:
        x (Tensor): Shape (..., C).
        weight (Tensor): Shape (C', C).
        bias (Tensor, optional): Shape (C',).

    Returns:
        Tensor: Shape (..., C').
    """
    if not (_is_plain_product(x, weight, bias) and _mkl_is_slow(weight)):
        return F.linear(x, weight, bias)
    # Columns side by side would make a convolution of another memory layout, and of its result.
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return convolution(weight, bias)(rows).unflatten(0, x.shape[:-1])


def _is_plain_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether many rows are to be multiplied in single precision on a CPU."""
    if not is_single_on_cpu(x, weight):
        return False
    # What does not fit is left to F.linear, and to its message.
    fits = x.dim() > 1 and x.shape[-1:] == weight.shape[1:] and weight.numel() > 0
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    return fits and x.numel() > SMALL


class Linear(nn.Linear):
    """``nn.Linear`` in the better of torch's public ways, see :func:`linear`.

    Tools that ask for that very class pass this one by: eager ``quantize_dynamic`` does, which
    attention could not be served by before either, as it multiplies by parts of its weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C')."""
        return linear(x, self.weight, self.bias)


def plain_gather(k: Tensor, v: Tensor) -> Tensor:
    """A batched product."""
    return k.transpose(-2, -1) @ v


def gather_by_convolution(k: Tensor, v: Tensor) -> Tensor:
    """The gradient of a 1x1 convolution's weight, with a group for each head."""
    heads, size = k.shape[1], (k.shape[1] * v.shape[-1], k.shape[-1], 1, 1)
    return torch.stack(
        [
            torch.ops.aten.convolution_backward(
                *(_as_row(x.transpose(0, 1).flatten(1)) for x in (values, keys)),
                k.new_empty(size), None, (1, 1), (0, 0), (1, 1), False, (0, 0), heads,
                (False, True, False),
            )[1].view(heads, -1, k.shape[-1]).transpose(1, 2)
            for keys, values in zip(k, v)
        ]
    )  # fmt: skip


def plain_read(q: Tensor, state: Tensor) -> Tensor:
    """A batched product."""
    return q @ state


def read_by_convolution(q: Tensor, state: Tensor) -> Tensor:
    """A 1x1 convolution with a group for each head."""
    heads = q.shape[1]
    kernels = state.transpose(-2, -1).flatten(1, 2)[..., None, None]
    rows = (
        F.conv2d(_as_row(x.transpose(0, 1).flatten(1)), kernel, groups=heads)
        for x, kernel in zip(q, kernels)
    )
    tokens = torch.cat([row[:, :, 0].transpose(1, 2) for row in rows])
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def read_by_diagonal(q: Tensor, state: Tensor) -> Tensor:
    """One product of all heads with the states on the diagonal of a matrix.

    An infinite feature makes all heads of its token NaN, not its own head alone.
    """
    diagonal = torch.stack([torch.block_diag(*states) for states in state])
    return (q.transpose(1, 2).flatten(2) @ diagonal).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)


def _as_row(x: Tensor) -> Tensor:
    """Tokens (n, C) as a channels-last map of one row."""
    return x.unflatten(0, (1, 1, -1)).permute(0, 3, 1, 2)


PLAIN = Products(plain_affine, plain_gather, plain_read)


def fast_affine(weight: Tensor, bias: Tensor | None) -> Affine:
    """The fastest of torch's own product, the convolution and the packed product, measured."""
    ways = affine_ways(weight.dtype)

    def calls() -> list[Callable[[], Tensor]]:
        tokens = at_once(max(weight.shape) * weight.itemsize)
        x = weight.new_ones(tokens, weight.shape[1])
        return [partial(way(weight, bias), x) for way in ways]

    key = ('affine', len(ways), *weight.shape, weight.dtype)
    return ways[_fastest(key, calls)](weight, bias)


def fast_gather(k: Tensor, v: Tensor) -> Tensor:
    """The faster of a batched product and a convolution's gradient; in strips alone."""
    if not by_strips(k):
        return plain_gather(k, v)
    ways = (plain_gather, gather_by_convolution)[: 1 + has_onednn(k.dtype)]
    key = ('gather', len(ways), *_size(k), k.shape[-1], v.shape[-1], k.dtype)
    return ways[_fastest(key, lambda: [partial(way, k, v) for way in ways])](k, v)


def fast_read(q: Tensor, state: Tensor) -> Tensor:
    """The fastest of a batched product, one of all heads and a convolution; in strips alone."""
    if not by_strips(q):
        return plain_read(q, state)
    ways = (plain_read, read_by_diagonal, read_by_convolution)[: 2 + has_onednn(q.dtype)]
    key = ('read', len(ways), *_size(q), *state.shape[2:], q.dtype)
    return ways[_fastest(key, lambda: [partial(way, q, state) for way in ways])](q, state)


def _size(x: Tensor) -> tuple[int, int, int]:
    """Images, heads and the magnitude of the number of tokens."""
    return *x.shape[:2], x.shape[-2].bit_length()


FAST = Products(fast_affine, fast_gather, fast_read)


def affine_ways(dtype: torch.dtype) -> tuple[Callable[[Tensor, Tensor | None], Affine], ...]:
    """The ways that exist of a product with a weight, torch's own first."""
    if not has_onednn(dtype):
        return (matrix,)
    return (matrix, convolution, packed) if _packs(dtype) else (matrix, convolution)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's product with a packed weight."""
    try:
        packed(torch.ones(2, 2, dtype=dtype), None)(torch.ones(1, 2, dtype=dtype))
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


_choices: dict[tuple, int] = {}


def _fastest(key: tuple, calls: Callable[[], list[Callable[[], Tensor]]]) -> int:
    """Which of some calls takes the shortest time, measured once for each key.

    The first where torch has to be deterministic: a measurement may turn out otherwise next time.
    """
    if torch.are_deterministic_algorithms_enabled():
        return 0
    key = (*key, torch.get_num_threads())
    if key not in _choices:
        # In turn, so that what else the machine does hits all alike; the first round warms up.
        timed = [[_time(call) for call in calls()] for _ in range(ROUNDS)][1:]
        best = [min(times) for times in zip(*timed)]
        _choices[key] = best.index(min(best))
    return _choices[key]


def _time(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class FastLinear(Linear):
    """A linear layer of deploy mode: in strips it runs in the way that is fastest.

    What it makes of its weights for that is kept beside them until they change. It does not notice
    weights that are written in place through ``.data``.
    """

    _made: tuple[tuple, list[Tensor], dict[tuple, Affine]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C')."""
        if x.dim() == 1 or not x.numel() or not by_strips(x):
            return super().forward(x)
        dtype = strip_dtype(x)
        tokens = x.to(dtype).reshape(-1, x.shape[-1])
        return self.affine(dtype)(tokens).unflatten(0, x.shape[:-1])

    def affine(self, dtype: torch.dtype, rows: slice = ALL) -> Affine:
        """The layer, or these rows of it, in its fastest way, for tokens of this dtype."""
        parameters = [t for t in (self.weight, self.bias) if t is not None]
        if any(t.is_inference() for t in parameters):  # Nothing tells when they change.
            return plain_affine(*_cast(self, dtype, rows))
        deterministic = torch.are_deterministic_algorithms_enabled()
        state = (deterministic, *((t.data_ptr(), t._version) for t in parameters))
        made = self._made  # Read once: another thread may replace it.
        if made is None or made[0] != state:
            # Weights are kept as well, so that no other can come to lie at their address.
            made = self._made = state, [t.detach() for t in parameters], {}
        ways, key = made[2], (dtype, rows.start, rows.stop)
        if key not in ways:
            # Ordinary tensors, whatever mode the caller is in: what is made of them is kept.
            with torch.inference_mode(False), torch.no_grad():
                ways[key] = fast_affine(*_cast(self, dtype, rows))
        return ways[key]

    def __getstate__(self) -> dict:
        """Without what is made of the weights, which can be neither copied nor pickled."""
        return {key: value for key, value in self.__dict__.items() if key != '_made'}


def affine_of(layer: nn.Linear, dtype: torch.dtype, rows: slice = ALL) -> Affine:
    """A linear layer as a function of tokens (n, C) of this dtype: in deploy mode the fastest.

    With ``rows``, those of its weight and bias alone. A layer of another kind, an adapter round a
    linear layer, may do more than its weight says: it is called.
    """
    if isinstance(layer, FastLinear):
        return layer.affine(dtype, rows)
    if type(layer) in (Linear, nn.Linear):
        return plain_affine(*_cast(layer, dtype, rows))

    def run(x: Tensor, out: Tensor | None = None) -> Tensor:
        y = layer(x.to(layer.weight.dtype))[..., rows].to(dtype)
        return y if out is None else out.copy_(y)

    return run


def _cast(layer: nn.Linear, dtype: torch.dtype, rows: slice) -> tuple[Tensor, Tensor | None]:
    bias = None if layer.bias is None else layer.bias.detach()[rows].to(dtype)
    return layer.weight.detach()[rows].to(dtype), bias
