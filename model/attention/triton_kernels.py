"""Pointwise SiLU attention on a GPU: the three kernels.

One program owns a block of one user's queries (forward, gradient of q) or keys (gradients of k and v) at one head and
walks over the user's other tokens, tile by tile. No tile is written; both backward kernels compute the scores anew.
A program writes only what it owns, so two runs give the same bits: the tables' gradients leave as one partial sum per
program, to be added up afterwards.

`places` is int32 [L]: twice each token's place in its user's history, and one if the token is alone; None if none is.

`blocks` is int32 [blocks, 4]: first token of the block, first and end of the user's tokens, and how far the walk goes.
A block of queries walks over keys up to there and over its own, one of keys over queries from its own up to there. A
block that begins at its user's end is empty.

Shapes: L tokens · H heads · E width of a query or key · F width of a value · T time buckets · P position buckets.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

from model.attention.triton_scores import (
    add_by_distance,
    biased,
    distances,
    factors,
    product,
    rows,
    sums_by_bucket,
    sums_by_diagonal,
    time_buckets_of,
    weights_and_slopes,
)

# What must not make a kernel of its own by its value.
CHANGING = ["seed", "threshold", "T", "P", "heads"]


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    q,
    k,
    v,
    slopes,
    key_bias,
    time_table,
    query_times,
    key_times,
    position_table,
    places,
    inverse,
    blocks,
    out,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    heads,
    T,
    P,
    scale,
    soft_cap,
    seed,
    threshold,
    kept_factor,
    E: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_E: tl.constexpr,
    PADDED_F: tl.constexpr,
    DOT: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """out[i] = Σ_j factor_ij · φ(score_ij) · v[j]."""
    block, head = tl.program_id(0), tl.program_id(1)
    first, start, stop = tl.load(blocks + 4 * block), tl.load(blocks + 4 * block + 1), tl.load(blocks + 4 * block + 2)
    near = tl.load(blocks + 4 * block + 3)
    if first >= stop:
        return
    i = first + tl.arange(0, BLOCK)
    pointers, exists = rows(q, first, stop, head, q_token, q_head, E, PADDED_E, BLOCK)
    q_tile = tl.load(pointers, mask=exists, other=0.0)
    gathered = tl.zeros((BLOCK, PADDED_F), dtype=tl.float32)
    for tile in range(start, near + BLOCK, BLOCK):
        begin = tile if places is None else tl.where(tile < near, tile, first)
        j = begin + tl.arange(0, BLOCK)
        pointers, exists = rows(k, begin, stop, head, k_token, k_head, E, PADDED_E, BLOCK)
        scores = product(q_tile, tl.trans(tl.load(pointers, mask=exists, other=0.0)), DOT) * scale
        buckets = None
        if time_table is not None:
            buckets = time_buckets_of(query_times, key_times, i, j, stop, T)
        distance = distances(i, j, stop, places)
        scores = biased(
            scores, buckets, distance, j, stop, head, heads, slopes, key_bias, time_table, T, position_table, P
        )
        weights, _ = weights_and_slopes(scores, soft_cap, CAPPED)
        weights *= factors(i, j, stop, head, places, inverse, seed, threshold, kept_factor, DROPOUT)
        pointers, exists = rows(v, begin, stop, head, v_token, v_head, F, PADDED_F, BLOCK)
        v_tile = tl.load(pointers, mask=exists, other=0.0)
        gathered += product(weights.to(v_tile.dtype), v_tile, DOT)
    pointers, exists = rows(out, first, stop, head, heads * F, F, F, PADDED_F, BLOCK)
    tl.store(pointers, gathered.to(out.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=CHANGING)
def query_gradient_kernel(
    q,
    k,
    v,
    slopes,
    key_bias,
    time_table,
    query_times,
    key_times,
    position_table,
    places,
    inverse,
    blocks,
    grad_out,
    grad_q,
    grad_time,
    grad_position,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    heads,
    T,
    P,
    scale,
    soft_cap,
    seed,
    threshold,
    kept_factor,
    E: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_E: tl.constexpr,
    PADDED_F: tl.constexpr,
    PADDED_T: tl.constexpr,
    DOT: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """grad_q, and this block's share of the tables' gradients: grad_time [blocks, H, T], grad_position [blocks, H, P].

    Tiles go from the farthest keys to the diagonal, BLOCK nearer each time. A tile's lower diagonals are the upper ones
    of the next tile: carried over, they let each distance be written once. Where tokens are alone, distances do not
    follow the diagonals, and are added up one by one.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    first, start, stop = tl.load(blocks + 4 * block), tl.load(blocks + 4 * block + 1), tl.load(blocks + 4 * block + 2)
    near = tl.load(blocks + 4 * block + 3)
    if first >= stop:
        return
    i = first + tl.arange(0, BLOCK)
    pointers, exists = rows(q, first, stop, head, q_token, q_head, E, PADDED_E, BLOCK)
    q_tile = tl.load(pointers, mask=exists, other=0.0)
    pointers, exists = rows(grad_out, first, stop, head, heads * F, F, F, PADDED_F, BLOCK)
    g_tile = tl.load(pointers, mask=exists, other=0.0)
    total = tl.zeros((BLOCK, PADDED_E), dtype=tl.float32)
    by_bucket = tl.zeros((PADDED_T,), dtype=tl.float32)
    carried, far = tl.zeros((BLOCK,), dtype=tl.float32), tl.zeros((BLOCK,), dtype=tl.float32)
    own = (block * heads + head).to(tl.int64)
    for tile in range(start, near + BLOCK, BLOCK):
        begin = tile if places is None else tl.where(tile < near, tile, first)
        j = begin + tl.arange(0, BLOCK)
        pointers, exists = rows(k, begin, stop, head, k_token, k_head, E, PADDED_E, BLOCK)
        k_tile = tl.load(pointers, mask=exists, other=0.0)
        scores = product(q_tile, tl.trans(k_tile), DOT) * scale
        buckets = None
        if time_table is not None:
            buckets = time_buckets_of(query_times, key_times, i, j, stop, T)
        distance = distances(i, j, stop, places)
        scores = biased(
            scores, buckets, distance, j, stop, head, heads, slopes, key_bias, time_table, T, position_table, P
        )
        _, grad_scores = weights_and_slopes(scores, soft_cap, CAPPED)
        grad_scores *= factors(i, j, stop, head, places, inverse, seed, threshold, kept_factor, DROPOUT)
        pointers, exists = rows(v, begin, stop, head, v_token, v_head, F, PADDED_F, BLOCK)
        grad_scores *= product(g_tile, tl.trans(tl.load(pointers, mask=exists, other=0.0)), DOT)
        total += product(grad_scores.to(k_tile.dtype), k_tile, DOT)
        if time_table is not None:
            counted = (j[None, :] <= i[:, None]) & (i < stop)[:, None]
            by_bucket += sums_by_bucket(grad_scores, buckets, counted, T, PADDED_T)
        if position_table is not None:
            if places is None:
                upper, lower = sums_by_diagonal(grad_scores, BLOCK)
                diagonal = first - begin + tl.arange(0, BLOCK)
                is_near = diagonal < P - 1
                sums = carried + upper
                tl.store(grad_position + own * P + diagonal, sums, mask=is_near)
                far += tl.where(is_near, 0.0, sums)
                carried = lower
            else:
                counted = (j[None, :] <= i[:, None]) & (i < stop)[:, None]
                add_by_distance(grad_position + own * P, grad_scores, tl.minimum(distance, P - 1), counted)
    pointers, exists = rows(grad_q, first, stop, head, heads * E, E, E, PADDED_E, BLOCK)
    tl.store(pointers, (total * scale).to(grad_q.dtype.element_ty), mask=exists)
    if time_table is not None:
        slot = tl.arange(0, PADDED_T)
        tl.store(grad_time + own * T + slot, by_bucket, mask=slot < T)
    if position_table is not None and places is None:
        tl.store(grad_position + own * P + P - 1, tl.sum(far))


@triton.jit(do_not_specialize=CHANGING)
def key_gradient_kernel(
    q,
    k,
    v,
    slopes,
    key_bias,
    time_table,
    query_times,
    key_times,
    position_table,
    places,
    inverse,
    blocks,
    grad_out,
    grad_k,
    grad_v,
    grad_key_bias,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    heads,
    T,
    P,
    scale,
    soft_cap,
    seed,
    threshold,
    kept_factor,
    E: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_E: tl.constexpr,
    PADDED_F: tl.constexpr,
    DOT: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """grad_k, grad_v, and grad_key_bias [L, H]."""
    block, head = tl.program_id(0), tl.program_id(1)
    first, stop, end = tl.load(blocks + 4 * block), tl.load(blocks + 4 * block + 2), tl.load(blocks + 4 * block + 3)
    if first >= stop:
        return
    j = first + tl.arange(0, BLOCK)
    pointers, exists = rows(k, first, stop, head, k_token, k_head, E, PADDED_E, BLOCK)
    k_tile = tl.load(pointers, mask=exists, other=0.0)
    pointers, exists = rows(v, first, stop, head, v_token, v_head, F, PADDED_F, BLOCK)
    v_tile = tl.load(pointers, mask=exists, other=0.0)
    total_k = tl.zeros((BLOCK, PADDED_E), dtype=tl.float32)
    total_v = tl.zeros((BLOCK, PADDED_F), dtype=tl.float32)
    total_bias = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(first, end, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        pointers, exists = rows(q, begin, stop, head, q_token, q_head, E, PADDED_E, BLOCK)
        q_tile = tl.load(pointers, mask=exists, other=0.0)
        scores = product(q_tile, tl.trans(k_tile), DOT) * scale
        buckets = None
        if time_table is not None:
            buckets = time_buckets_of(query_times, key_times, i, j, stop, T)
        distance = distances(i, j, stop, places)
        scores = biased(
            scores, buckets, distance, j, stop, head, heads, slopes, key_bias, time_table, T, position_table, P
        )
        weights, grad_scores = weights_and_slopes(scores, soft_cap, CAPPED)
        factor = factors(i, j, stop, head, places, inverse, seed, threshold, kept_factor, DROPOUT)
        pointers, exists = rows(grad_out, begin, stop, head, heads * F, F, F, PADDED_F, BLOCK)
        g_tile = tl.load(pointers, mask=exists, other=0.0)
        total_v += product(tl.trans((weights * factor).to(g_tile.dtype)), g_tile, DOT)
        grad_scores *= factor * product(g_tile, tl.trans(v_tile), DOT)
        total_k += product(tl.trans(grad_scores.to(q_tile.dtype)), q_tile, DOT)
        if key_bias is not None:
            total_bias += tl.sum(grad_scores, axis=0)
    pointers, exists = rows(grad_k, first, stop, head, heads * E, E, E, PADDED_E, BLOCK)
    tl.store(pointers, (total_k * scale).to(grad_k.dtype.element_ty), mask=exists)
    pointers, exists = rows(grad_v, first, stop, head, heads * F, F, F, PADDED_F, BLOCK)
    tl.store(pointers, total_v.to(grad_v.dtype.element_ty), mask=exists)
    if key_bias is not None:
        tl.store(grad_key_bias + j.to(tl.int64) * heads + head, total_bias, mask=j < stop)
