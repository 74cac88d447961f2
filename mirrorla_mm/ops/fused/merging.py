# mypy: disable-error-code="no-untyped-def"
"""How the sums of a head's splits become one, in the launch that makes them.

Every program leaves its sums in a row of its own. Splits form groups of ``group``: the program of a
group that finishes last merges the group's rows, and of those the one that finishes last merges the
groups, where there is more than one. Which program that is may change from run to run; the order of
the additions does not, so neither do the bits. A single program that merges hundreds of rows would
make all others wait.

Counters are zeroed before every call and belong to it alone, so that neither a second stream, nor
a replayed graph, nor a call that was cut short can find them in use.
"""

import triton
import triton.language as tl

from .tiles import store_vector

ROWS_AT_ONCE: tl.constexpr = tl.constexpr(16)


@triton.jit
def arrives_last(counter, expected):
    """Whether this program is the last of ``expected``; then it sees what the others have stored.

    - The barrier puts the stores of all threads before the addition, which one thread does.
    - The addition releases them to the whole GPU, and acquires those of the programs that have
      added before: every addition reads the value that the one before it wrote.
    - The result goes to the other threads through a barrier, so their loads come after it, too.
    """
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem='acq_rel', scope='gpu') == expected - 1


@triton.jit
def own_group(group):
    """This program's group, its first split and the one after its last, and the number of groups.

    Grid: (heads, splits, ...).
    """
    splits = tl.num_programs(1)
    own = tl.program_id(1) // group
    return own, own * group, tl.minimum(own * group + group, splits), tl.cdiv(splits, group)


@triton.jit
def own_counters(counters, first_counter, groups):
    """Counters of this program's head: one for the groups, then one for each group's splits."""
    head = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    return counters + first_counter + head * (groups + 1)


@triton.jit
def head_rows(partial, groups, ROW: tl.constexpr):
    """Rows of this program's head, ``ROW`` numbers each: of its splits, and then of its groups."""
    head = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    rows = partial + head.to(tl.int64) * (tl.num_programs(1) + groups) * ROW
    return rows, rows + tl.num_programs(1) * ROW


@triton.jit
def own_row(partial, group, ROW: tl.constexpr):
    """Where this program leaves its sums."""
    rows, _ = head_rows(partial, tl.cdiv(tl.num_programs(1), group), ROW)
    return rows + tl.program_id(1) * ROW


@triton.jit
def row_block(rows, first, stop, column, SIZE: tl.constexpr, ROW: tl.constexpr):
    """Addresses and mask of some columns of the next ``ROWS_AT_ONCE`` rows; (rows, columns)."""
    row = first + tl.arange(0, ROWS_AT_ONCE)
    mask = (row < stop)[:, None] & (column < SIZE)[None, :]
    return rows + row[:, None] * ROW + column[None, :], mask


@triton.jit
def add_rows(rows, target, first, stop, SIZE: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr):
    """Add the rows from ``first`` to before ``stop`` into ``target``."""
    for c0 in range(0, SIZE, BLOCK):
        column = c0 + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for r0 in range(first, stop, ROWS_AT_ONCE):
            pointers, mask = row_block(rows, r0, stop, column, SIZE, ROW)
            total += tl.sum(tl.load(pointers, mask=mask, other=0.0), 0)
        tl.store(target + column, total, mask=column < SIZE)


@triton.jit
def merge_sums(
    partial, target, counters, first_counter, group,
    SIZE: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the rows of all splits into ``target``; True in the program that has done so."""
    own, first, stop, groups = own_group(group)
    rows, merged = head_rows(partial, groups, ROW)
    counters = own_counters(counters, first_counter, groups)
    last = arrives_last(counters + 1 + own, stop - first)
    if last:
        own_target = tl.where(groups == 1, target, merged + own * ROW)
        add_rows(rows, own_target, first, stop, SIZE, ROW, BLOCK)
        if groups > 1:
            last = arrives_last(counters, groups)
            if last:
                add_rows(merged, target, 0, groups, SIZE, ROW, BLOCK)
        tl.debug_barrier()  # what follows may read it
    return last


@triton.jit
def largest_exponent(rows, first, stop, SIZE: tl.constexpr, ROW: tl.constexpr):
    """``top = max_i top_i`` and ``sum_i 2^(top_i - top) total_i``, which follow a row's numbers."""
    top = -float('inf')
    total = 0.0
    for r0 in range(first, stop, ROWS_AT_ONCE):
        row = r0 + tl.arange(0, ROWS_AT_ONCE)
        tops = tl.load(rows + row * ROW + SIZE, mask=row < stop, other=-float('inf'))
        totals = tl.load(rows + row * ROW + SIZE + 1, mask=row < stop, other=0.0)
        new_top = tl.maximum(top, tl.max(tops, 0))
        total = total * tl.exp2(top - new_top) + tl.sum(totals * tl.exp2(tops - new_top), 0)
        top = new_top
    return top, total


@triton.jit
def add_scaled_rows(
    rows, target, first, stop, top, share,
    SIZE: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add ``share 2^(top_i - top)`` times each row into ``target``."""
    for c0 in range(0, SIZE, BLOCK):
        column = c0 + tl.arange(0, BLOCK)
        summed = tl.zeros((BLOCK,), tl.float32)
        for r0 in range(first, stop, ROWS_AT_ONCE):
            row = r0 + tl.arange(0, ROWS_AT_ONCE)
            tops = tl.load(rows + row * ROW + SIZE, mask=row < stop, other=-float('inf'))
            pointers, mask = row_block(rows, r0, stop, column, SIZE, ROW)
            part = tl.load(pointers, mask=mask, other=0.0)
            summed += tl.sum(part * tl.exp2(tops - top)[:, None], 0)
        tl.store(target + column, summed * share, mask=column < SIZE)


@triton.jit
def merge_softmax(
    partial, target, log_sum, counters, first_counter, group,
    SIZE: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``sum_i 2^(top_i - L)`` times each split's row, ``L = log2 sum_i 2^top_i total_i``.

    A row is ``SIZE`` numbers, then its ``top_i`` and its ``total_i``.
    """
    own, first, stop, groups = own_group(group)
    rows, merged = head_rows(partial, groups, ROW)
    counters = own_counters(counters, first_counter, groups)
    last = arrives_last(counters + 1 + own, stop - first)
    if last:
        top, total = largest_exponent(rows, first, stop, SIZE, ROW)
        own_merged = merged + own * ROW
        own_target = tl.where(groups == 1, target, own_merged)
        share = tl.where(groups == 1, 1 / total, 1.0)
        add_scaled_rows(rows, own_target, first, stop, top, share, SIZE, ROW, BLOCK)
        if groups > 1:
            tl.store(own_merged + SIZE, top)
            tl.store(own_merged + SIZE + 1, total)
            last = arrives_last(counters, groups)
            if last:
                top, total = largest_exponent(merged, 0, groups, SIZE, ROW)
                add_scaled_rows(merged, target, 0, groups, top, 1 / total, SIZE, ROW, BLOCK)
        if last:
            tl.store(log_sum, top + tl.log2(total))


@triton.jit
def row_tokens(first, stop, tokens, span):
    """How many tokens each of the next rows stands for, ``span`` or less; (rows, 1) in float32."""
    row = first + tl.arange(0, ROWS_AT_ONCE)
    seen = tl.maximum(tl.minimum(tokens - row * span, span), 0)
    return tl.where(row < stop, seen, 0).to(tl.float32)[:, None]


@triton.jit
def combined_moments(
    rows, first, stop, tokens, span, HEAD_DIM: tl.constexpr, ROW: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Mean and ``M2``, the sum of squared deviations, of rows that hold those of ``span`` tokens.

    ``M2 = sum_i M2_i + n_i (mean_i - mean)^2``, after Chan et al.; (d,) each.
    """
    channel = tl.arange(0, BLOCK_D)
    count = tl.minimum(tokens, stop * span) - first * span
    mean = tl.zeros((BLOCK_D,), tl.float32)
    squares = tl.zeros((BLOCK_D,), tl.float32)
    for r0 in range(first, stop, ROWS_AT_ONCE):
        pointers, mask = row_block(rows, r0, stop, channel, HEAD_DIM, ROW)
        seen = row_tokens(r0, stop, tokens, span)
        mean += tl.sum(tl.load(pointers, mask=mask, other=0.0) * seen, 0) / count
    for r0 in range(first, stop, ROWS_AT_ONCE):
        pointers, mask = row_block(rows, r0, stop, channel, HEAD_DIM, ROW)
        seen = row_tokens(r0, stop, tokens, span)
        deviation = tl.load(pointers, mask=mask, other=0.0) - mean[None, :]
        squares += tl.sum(tl.load(pointers + HEAD_DIM, mask=mask, other=0.0), 0)
        squares += tl.sum(seen * deviation * deviation, 0)
    return mean, squares


@triton.jit
def merge_moments(
    partial, counters, first_counter, group, tokens, chunk,
    HEAD_DIM: tl.constexpr, ROW: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Mean and ``M2`` of all tokens from those of the splits; valid where the last value is True.

    A row is d means, then d numbers ``M2_i``.
    """
    own, first, stop, groups = own_group(group)
    rows, merged = head_rows(partial, groups, ROW)
    counters = own_counters(counters, first_counter, groups)
    mean = tl.zeros((BLOCK_D,), tl.float32)
    squares = tl.zeros((BLOCK_D,), tl.float32)
    last = arrives_last(counters + 1 + own, stop - first)
    if last:
        mean, squares = combined_moments(rows, first, stop, tokens, chunk, HEAD_DIM, ROW, BLOCK_D)
        if groups > 1:
            store_vector(merged + own * ROW, mean, HEAD_DIM, BLOCK_D)
            store_vector(merged + own * ROW + HEAD_DIM, squares, HEAD_DIM, BLOCK_D)
            last = arrives_last(counters, groups)
            if last:
                span = group * chunk
                mean, squares = combined_moments(
                    merged, 0, groups, tokens, span, HEAD_DIM, ROW, BLOCK_D
                )
    return mean, squares, last
