# mypy: disable-error-code="no-untyped-def"
"""Parts of the fused kernels: tiles of tokens, the feature maps, the rotation, a dot product.

A tile holds ``BLOCK_N`` tokens of one head in float32, ``BLOCK_D`` channels wide: ``HEAD_DIM``
rounded up to a power of two, the rest zero. Channels keep their order; :func:`pairs` splits a tile
into the first and the second channels of its two-channel blocks, which costs nothing where a
thread holds both. Of an odd ``HEAD_DIM`` the last channel is the first of a block without a mirror.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED: tl.constexpr = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def pairs(x):
    """Split (n, d) into the first and the second channels of each block, (n, d/2) each."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))


@triton.jit
def interleave(first, second):
    """Undo :func:`pairs`."""
    return tl.reshape(tl.join(first, second), (first.shape[0], first.shape[1] * 2))


@triton.jit
def own_tokens(tokens, chunk):
    """Head, first token and the token after the last of a program of the grid (B*H, splits)."""
    start = tl.program_id(1) * chunk
    return tl.program_id(0), start, tl.minimum(start + chunk, tokens)


@triton.jit
def head_pointer(x, strides, head, heads, VECTOR: tl.constexpr):
    """Where a head of a (B, H, N, d) tensor begins; ``head`` counts over B*H.

    Strides are multiples of ``VECTOR``, which the compiler needs to know for wide loads. (A hint
    is lost on a function's argument, so each stands where its number is made.)
    """
    offset = (head // heads).to(tl.int64) * strides[0] + (head % heads).to(tl.int64) * strides[1]
    if VECTOR > 1:
        offset = tl.multiple_of(offset, VECTOR)
    return x + offset


@triton.jit
def tile_pointers(
    x, strides, start, VECTOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Addresses of a tile in a head, in int64: strides of 2^31 and more are ordinary.

    Offsets in the tile do not depend on ``start``, so a loop over tiles adds them up but once.
    """
    first = tl.cast(start, tl.int64) * strides[2]
    token = tl.arange(0, BLOCK_N).to(tl.int64) * strides[2]
    if VECTOR > 1:
        first = tl.multiple_of(first, VECTOR)
        token = tl.multiple_of(token, VECTOR)
    channel = tl.arange(0, BLOCK_D).to(tl.int64) * strides[3]
    return x + first + (token[:, None] + channel[None, :])


@triton.jit
def tile_mask(start, stop, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """True at the tokens before ``stop`` and the channels that exist."""
    token = (start + tl.arange(0, BLOCK_N) < stop)[:, None]
    if HEAD_DIM == BLOCK_D:
        return tl.broadcast_to(token, (BLOCK_N, BLOCK_D))
    else:
        return token & (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]


@triton.jit
def load_tile(
    x,
    strides,
    start,
    stop,
    VECTOR: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile in float32, zero outside."""
    mask = tile_mask(start, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
    pointers = tile_pointers(x, strides, start, VECTOR, BLOCK_N, BLOCK_D)
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(
    x,
    strides,
    value,
    start,
    stop,
    VECTOR: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write a tile in the tensor's dtype."""
    mask = tile_mask(start, stop, HEAD_DIM, BLOCK_N, BLOCK_D)
    pointers = tile_pointers(x, strides, start, VECTOR, BLOCK_N, BLOCK_D)
    tl.store(pointers, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(x, SIZE: tl.constexpr, BLOCK: tl.constexpr, BEYOND: tl.constexpr = 0.0):
    """``SIZE`` contiguous numbers as a row (1, BLOCK), ``BEYOND`` after them."""
    index = tl.arange(0, BLOCK)
    return tl.load(x + index, mask=index < SIZE, other=BEYOND)[None, :]


@triton.jit
def store_vector(x, value, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Write (BLOCK,) to ``SIZE`` contiguous numbers."""
    index = tl.arange(0, BLOCK)
    tl.store(x + index, value, mask=index < SIZE)


@triton.jit
def matrix_offsets(HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets and mask of a contiguous (d, d) matrix in a square block."""
    index = tl.arange(0, BLOCK_D)
    return index[:, None] * HEAD_DIM + index[None, :], (index < HEAD_DIM)[:, None] & (
        index < HEAD_DIM
    )[None, :]


@triton.jit
def load_matrix(x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A contiguous (d, d) matrix, zero beyond."""
    offset, mask = matrix_offsets(HEAD_DIM, BLOCK_D)
    return tl.load(x + offset, mask=mask, other=0.0)


@triton.jit
def store_matrix(x, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a contiguous (d, d) matrix."""
    offset, mask = matrix_offsets(HEAD_DIM, BLOCK_D)
    tl.store(x + offset, value, mask=mask)


@triton.jit
def round_to_tf32(x):
    """To the nearest TF32 number: the tensor cores would cut the lower bits off, a steady shrink.

    The interpreter knows no assembly, and its products are exact.
    """
    if not INTERPRETED:
        x = tl.inline_asm_elementwise(
            'cvt.rna.tf32.f32 $0, $1;', '=r,r', [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return x


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """``a @ b``, summed in float32: of bfloat16 or TF32 operands, or three TF32 products."""
    if PRECISION == 'bf16':
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == 'tf32':
        return tl.dot(round_to_tf32(a), round_to_tf32(b), input_precision='tf32')
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def mirror_row(mirror, row, HEAD_DIM: tl.constexpr):
    """Where a head's mirror begins in ``mirror``, (2, B*H, 3 (d // 2) + d), that of k in 2nd place.

    A row is cos 2Theta, sin 2Theta and dTheta/dvariance of each block, and each channel's mean.
    """
    return mirror + row.to(tl.int64) * (HEAD_DIM // 2 * 3 + HEAD_DIM)


@triton.jit
def load_mirror(
    mirror, row, FEATURE_MAP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """cos and sin of twice the mirror's angle, (1, d/2) each; zeros for the other feature maps.

    Beyond the blocks they are -1 and 0, which leaves the last of an odd number of channels as it
    is.
    """
    if FEATURE_MAP == 'mirror':
        start = mirror_row(mirror, row, HEAD_DIM)
        cos = load_vector(start, HEAD_DIM // 2, BLOCK_D // 2, -1.0)
        sin = load_vector(start + HEAD_DIM // 2, HEAD_DIM // 2, BLOCK_D // 2)
    else:
        cos = tl.zeros((1, BLOCK_D // 2), tl.float32)
        sin = cos
    return cos, sin


@triton.jit
def reflect(x, cos, sin, FEATURE_MAP: tl.constexpr):
    """H(Theta) x, blocks [[-cos, -sin], [-sin, cos]]: symmetric and its own inverse."""
    if FEATURE_MAP == 'mirror':
        first, second = pairs(x)
        x = interleave(-cos * first - sin * second, cos * second - sin * first)
    return x


@triton.jit
def feature(h, mask, FEATURE_MAP: tl.constexpr):
    """phi of reflected channels, zero outside the mask; a NaN stays one."""
    if FEATURE_MAP == 'elu':
        return tl.where(mask, tl.where(h < 0, tl.exp(tl.minimum(h, 0)), h + 1), 0.0)
    else:
        return tl.maximum(h, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def feature_gradient(h, grad, FEATURE_MAP: tl.constexpr):
    """Gradient of the reflected channels, given that of their features."""
    if FEATURE_MAP == 'elu':
        return grad * tl.where(h > 0, 1.0, tl.exp(tl.minimum(h, 0)))
    else:
        return tl.where(h > 0, grad, 0.0)


@triton.jit
def load_features(
    x,
    strides,
    cos,
    sin,
    start,
    stop,
    VECTOR: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile's reflected channels and their features."""
    value = load_tile(x, strides, start, stop, VECTOR, HEAD_DIM, BLOCK_N, BLOCK_D)
    h = reflect(value, cos, sin, FEATURE_MAP)
    return h, feature(h, tile_mask(start, stop, HEAD_DIM, BLOCK_N, BLOCK_D), FEATURE_MAP)


@triton.jit
def load_turned(
    x,
    strides,
    cos,
    sin,
    table,
    positions,
    start,
    stop,
    width,
    ROPE: tl.constexpr,
    VECTOR: tl.constexpr,
    FEATURE_MAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile's reflected channels h, features f and R(f), and the rotation's cos and sin."""
    h, f = load_features(
        x, strides, cos, sin, start, stop, VECTOR, FEATURE_MAP, HEAD_DIM, BLOCK_N, BLOCK_D
    )
    rope_cos, rope_sin = load_rotation(
        table, positions, start, stop, width, ROPE, HEAD_DIM, BLOCK_N, BLOCK_D
    )
    return h, f, rotate(f, rope_cos, rope_sin, ROPE), rope_cos, rope_sin


@triton.jit
def angle_gradient(h, grad):
    """Gradient of Theta from each token, (n, d/2), given reflected channels and their gradient.

    d(h1, h2)/dTheta = 2 (-h2, h1).
    """
    first, second = pairs(h)
    grad_first, grad_second = pairs(grad)
    return 2 * (first * grad_second - second * grad_first)


@triton.jit
def load_rotation(
    table,
    positions,
    start,
    stop,
    width,
    ROPE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """cos and sin of the tokens' angles, (BLOCK_N, d/2) each; the table stays in the cache.

    ``table`` is (2, positions, d/4), cosines and sines of every row or column: the first d/4 pairs
    turn with the row, the others with the column.
    """
    if ROPE:
        QUARTER: tl.constexpr = HEAD_DIM // 4
        token = tl.minimum(start + tl.arange(0, BLOCK_N), stop - 1)
        row = token // width
        pair = tl.arange(0, BLOCK_D // 2)
        position = tl.where((pair < QUARTER)[None, :], row[:, None], (token - row * width)[:, None])
        index = position * QUARTER + (pair % QUARTER)[None, :]
        VECTOR: tl.constexpr = 4 if QUARTER % 4 == 0 else 2 - QUARTER % 2
        index = tl.max_contiguous(tl.multiple_of(index, (1, VECTOR)), (1, VECTOR))
        cos = tl.load(table + index).to(tl.float32)
        sin = tl.load(table + positions * QUARTER + index).to(tl.float32)
    else:
        cos = tl.zeros((1, 1), tl.float32)
        sin = cos
    return cos, sin


@triton.jit
def rotate(x, cos, sin, ROPE: tl.constexpr):
    """R_t x_t: turn each block by its token's angle. With ``-sin``, turn it back."""
    if ROPE:
        first, second = pairs(x)
        x = interleave(cos * first - sin * second, sin * first + cos * second)
    return x
