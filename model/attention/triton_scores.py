"""What the Triton kernels share: tiles of tokens, and from a tile of q·k to weights and the gradient of scores.

A tile is a block of queries by a block of keys of one user and head. Everything between two matrix products happens in
float32 registers: no score is written to memory. The bucket of a time and the hash of dropout are those of
`model.biases.log_buckets` and `model.attention.dropout`, bit for bit.

Shapes: L tokens · H heads · T time buckets · P position buckets · i queries and j keys of a tile, by flat number.
"""

# The types of Triton's language are those of its compiler, not of Python.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

from model.attention import dropout

MIX_FIRST, MIX_SECOND = tl.constexpr(dropout.MIX_FIRST), tl.constexpr(dropout.MIX_SECOND)
HEAD_FACTOR = tl.constexpr(dropout.HEAD_FACTOR)
QUERY_FACTOR = tl.constexpr(dropout.QUERY_FACTOR)
KEY_FACTOR = tl.constexpr(dropout.KEY_FACTOR)


@triton.jit
def rows(
    base, begin, stop, head, stride_token, stride_head, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
):
    """Pointers to BLOCK tokens' rows at a head, [BLOCK, PADDED], and the mask of those that exist."""
    token, column = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    # Only the scalar needs 64 bits.
    corner = base + tl.cast(begin, tl.int64) * stride_token + head * stride_head
    exists = (token < stop - begin)[:, None] & (column < WIDTH)[None, :]
    return corner + (token[:, None] * stride_token + column[None, :]), exists


@triton.jit
def product(a, b, DOT: tl.constexpr):
    """a·b accumulated in float32; float32 itself is not shortened to TF32."""
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@triton.jit
def time_buckets_of(query_times, key_times, i, j, stop, T):
    """Bucket of the time between query and key, both int32 since the user's first event: int32 of the tile's shape."""
    asked = tl.load(query_times + i, mask=i < stop, other=0)
    happened = tl.load(key_times + j, mask=j < stop, other=0)
    elapsed = asked[:, None] - happened[None, :]
    seconds = tl.maximum(elapsed, 1).to(tl.float32)
    return tl.minimum((seconds.to(tl.int32, bitcast=True) >> 22) - 254, T - 1)


@triton.jit
def distances(i, j, stop, places):
    """How many tokens that are seen lie between two, and one: int32 of the tile's shape."""
    if places is None:
        return i[:, None] - j[None, :]
    else:
        place_i = tl.load(places + i, mask=i < stop, other=0)
        place_j = tl.load(places + j, mask=j < stop, other=0)
        return (place_i >> 1)[:, None] - (place_j >> 1)[None, :]


@triton.jit
def biased(scores, buckets, distance, j, stop, head, heads, slopes, key_bias, time_table, T, position_table, P):
    """Scores with all biases added; a pointer that is None is switched off."""
    if slopes is not None:
        scores -= tl.load(slopes + head) * distance.to(tl.float32)
    if key_bias is not None:
        scores += tl.load(key_bias + j.to(tl.int64) * heads + head, mask=j < stop, other=0.0)[None, :]
    if time_table is not None:
        scores += tl.load(time_table + head * T + buckets)
    if position_table is not None:
        near = tl.minimum(tl.maximum(distance, 0), P - 1)
        scores += tl.load(position_table + head * P + near)
    return scores


@triton.jit
def tanh(x):
    """The hyperbolic tangent, to float32's rounding near zero too, where the quotient would cancel."""
    small = x * x
    series = x * (1.0 - small * (0.33333334 - small * (0.13333334 - small * 0.053968254)))
    decayed = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - decayed) / (1.0 + decayed)
    return tl.where(tl.abs(x) < 0.2, series, tl.where(x < 0.0, -quotient, quotient))


@triton.jit
def mix(x):
    """A bijection of int32; the masks keep copies of the sign out."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * MIX_FIRST
    x = (x ^ ((x >> 15) & 0x1FFFF)) * MIX_SECOND
    return x ^ ((x >> 16) & 0xFFFF)


@triton.jit
def factors(i, j, stop, head, places, inverse, seed, threshold, kept_factor, DROPOUT: tl.constexpr):
    """What φ(score) is multiplied by: 1 / normaliser, dropout, and zero where the query does not see the key."""
    visible = (j[None, :] <= i[:, None]) & (i < stop)[:, None]
    if places is not None:
        is_alone = tl.load(places + j, mask=j < stop, other=0) & 1
        # Whoever is alone is seen by nobody behind it.
        visible = visible & (i[:, None] <= tl.where(is_alone == 1, j, stop)[None, :])
    factor = tl.load(inverse + i, mask=i < stop, other=0.0)[:, None]
    if DROPOUT:
        seeded = mix((head * HEAD_FACTOR) ^ seed)
        hashed = mix(mix((i * QUERY_FACTOR) ^ seeded)[:, None] ^ mix(j * KEY_FACTOR + 1)[None, :])
        visible = visible & (hashed >= threshold)
        factor = factor * kept_factor
    return tl.where(visible, factor, 0.0)


@triton.jit
def weights_and_slopes(scores, soft_cap, CAPPED: tl.constexpr):
    """φ(score) and its derivative by the score before the soft cap."""
    slope = 1.0
    if CAPPED:
        squashed = tanh(scores / soft_cap)
        scores = soft_cap * squashed
        slope = 1.0 - squashed * squashed
    gate = tl.sigmoid(scores)
    return scores * gate, slope * gate * (1.0 + scores * (1.0 - gate))


@triton.jit
def sums_by_bucket(values, buckets, counted, limit, BLOCK_T: tl.constexpr):
    """Sum of the values in each bucket, [BLOCK_T], always in the same order.

    One pass over the tile per bucket that can occur in it: on the diagonal those are many, elsewhere a logarithm's few.
    """
    slot = tl.arange(0, BLOCK_T)
    sums = tl.zeros((BLOCK_T,), dtype=tl.float32)
    lowest = tl.min(tl.where(counted, buckets, limit))
    highest = tl.max(tl.where(counted, buckets, -1))
    for bucket in range(lowest, highest + 1):
        total = tl.sum(tl.where(buckets == bucket, values, 0.0))
        sums += tl.where(slot == bucket, total, 0.0)
    return sums


@triton.jit
def add_by_distance(into, values, distance, counted):
    """Add the sum of the values at each distance to what is there, always in the same order.

    It is one thread that reads and writes a single number, so that it finds what it wrote for an earlier tile.
    """
    lowest = tl.min(tl.where(counted, distance, 0x7FFFFFFF))
    highest = tl.max(tl.where(counted, distance, -1))
    for near in range(lowest, highest + 1):
        total = tl.sum(tl.where(counted & (distance == near), values, 0.0))
        tl.store(into + near, tl.load(into + near) + total)


@triton.jit
def sums_by_diagonal(values, BLOCK: tl.constexpr):
    """Sums of a square tile along its diagonals.

    Returns:
        (of those with i - j = x, of those with i - j = x - BLOCK), x = 0 … BLOCK-1, i and j counted within the tile.
    """
    row, x = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    skewed = tl.gather(values, (row - x + BLOCK) % BLOCK, axis=1)
    return tl.sum(tl.where(row >= x, skewed, 0.0), axis=0), tl.sum(tl.where(row < x, skewed, 0.0), axis=0)
