"""Items that share a tuple take others near by: `collisions=reassign`.

The most played item of a group keeps the tuple. The others ask, in rounds, for the free tuple nearest to their vector
among the candidates: their own first C - 2 codes, one of the NEAREST codes of the level before the last, any code of
the last. Of those who ask for one tuple the most played gets it, and the others ask again. The all-zero tuple and those
of items coded earlier are taken from the start. Who finds no candidate free keeps the tuple that it shares.

Items of one group with one vector always ask for the same tuple, so only the most played of them need ask: a thousand
copies of a recording cost a thousand rounds of one question, not of a thousand.

A tuple among the candidates is one number, its key: (prefix · V + second to last code) · V + last code, where prefixes
of C - 2 codes are numbered in order.

n items · p of them pending · Q queues: items of one group with one vector · C code levels · V codes per level ·
D vector width · d codebook width · G tuples in use · m items of a block · k candidates of the second to last level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.progress import Progress
from common.seeding import derive_seed
from semantic_ids.codes.tuples import find, order_items, pack
from semantic_ids.quantizers.base import Codes, Quantizer, Vectors, sum_of_rows
from semantic_ids.vectors.base import ItemVectors

NEAREST = 32
"""Codes of the second to last level that are tried. Beyond them a tuple says less of an item than a shared one does."""

_BLOCK_NUMBERS = 2**23
"""Distances held at once."""

_BLOCK_VECTORS = 65536

Indices = npt.NDArray[np.int64]


def reassign(
    codes_nC: Codes, plays_n: npt.NDArray[np.int64], quantizer: Quantizer, vectors: ItemVectors, fixed: Codes
) -> Codes:
    """Codes [n, C] of which no two rows are equal, as far as candidates go round; see the head of this module.

    Args:
        codes_nC: what the quantiser gave the items of `vectors`, in their order; never all zero.
        fixed: tuples [f, C] that are taken.
    """
    assert len(vectors) == len(codes_nC) == len(plays_n), (len(vectors), len(codes_nC), len(plays_n))
    codes = quantizer.codes_per_level
    order_n, offsets = order_items(codes_nC, plays_n, codes)
    assert len(order_n) == len(codes_nC), "an item carries the all-zero tuple"
    tuples_GC = codes_nC[order_n[offsets[:-1]]]
    fixed = np.concatenate([np.zeros((1, codes_nC.shape[1]), np.uint16), fixed])
    group_p, item_p = _pending(order_n, offsets, tuples_GC, fixed, codes)
    if not len(item_p):
        return codes_nC
    prefix_G = _number_prefixes(tuples_GC)
    search = _Search(quantizer, _taken_keys(tuples_GC, prefix_G, np.unique(prefix_G[group_p]), fixed, codes))
    queues = _Queues.of(group_p, item_p, prefix_G[group_p], vectors)
    return _ask_in_rounds(codes_nC, plays_n, vectors, search, queues)


def _pending(order_n: Indices, offsets: Indices, tuples_GC: Codes, fixed: Codes, codes: int) -> tuple[Indices, Indices]:
    """Groups and items [p] that need another tuple; groups ascend, within them the more played come first."""
    group_n = np.repeat(np.arange(len(tuples_GC)), np.diff(offsets))
    is_held_G = np.zeros(len(tuples_GC), bool)
    begin_f, end_f = find(pack(tuples_GC, codes), pack(fixed, codes))
    is_held_G[begin_f[begin_f < end_f]] = True
    needs_n = is_held_G[group_n]
    needs_n |= np.arange(len(order_n)) > offsets[group_n]
    return group_n[needs_n], order_n[needs_n]


def _number_prefixes(tuples_GC: Codes) -> Indices:
    """Numbers [G] of the first C - 2 codes of ascending tuples, which ascend too."""
    prefixes = tuples_GC[:, : max(tuples_GC.shape[1] - 2, 0)]
    starts_G = np.zeros(len(tuples_GC), bool)
    for code_G in prefixes.T:
        starts_G[1:] |= code_G[1:] != code_G[:-1]
    return np.cumsum(starts_G)


def _taken_keys(tuples_GC: Codes, prefix_G: Indices, wanted: Indices, fixed: Codes, codes: int) -> Indices:
    """Keys of tuples in use that begin with a prefix of `wanted`, ascending."""
    split = max(tuples_GC.shape[1] - 2, 0)
    first_G = np.flatnonzero(np.diff(prefix_G, prepend=-1))
    prefix_f = np.zeros(len(fixed), np.int64)
    if split:
        begin_f, end_f = find(pack(tuples_GC[first_G, :split], codes), pack(fixed[:, :split], codes))
        met = begin_f < end_f
        prefix_f, fixed = begin_f[met], fixed[met]
    prefix, rest = np.concatenate([prefix_G, prefix_f]), np.concatenate([tuples_GC[:, split:], fixed[:, split:]])
    near = np.isin(prefix, wanted)
    keys = prefix[near]
    if rest.shape[1] == 1:  # one level in all: the level before it is made up, with the one code 0
        keys = keys * codes
    for code in rest[near].T:
        keys = keys * codes + code
    return np.unique(keys)


@dataclass(frozen=True, eq=False)
class _Queues:
    """Pending items of one group with one vector, the more played first: queue q is items[begin_Q[q] : end_Q[q]]."""

    items: Indices
    begin_Q: Indices
    end_Q: Indices
    prefix_Q: Indices

    @staticmethod
    def of(group_p: Indices, item_p: Indices, prefix_p: Indices, vectors: ItemVectors) -> _Queues:
        hash_p = _hashes(item_p, vectors)
        order = np.lexsort([hash_p, group_p])  # stable: the more played stay before the others
        starts = np.ones(len(order), bool)
        starts[1:] = (np.diff(group_p[order]) != 0) | (hash_p[order][1:] != hash_p[order][:-1])
        begin_Q = np.flatnonzero(starts)
        return _Queues(item_p[order], begin_Q, np.append(begin_Q[1:], len(order)), prefix_p[order[begin_Q]])


def _hashes(item_p: Indices, vectors: ItemVectors) -> npt.NDArray[np.uint64]:
    """Equal for equal vectors. Different vectors of one group that had one hash would only ask for the same tuples."""
    generator = np.random.default_rng(derive_seed("hash of item vectors"))
    factors_D = generator.integers(2**64, size=vectors.width, dtype=np.uint64)
    hash_p = np.empty(len(item_p), np.uint64)
    ascending = np.argsort(item_p)
    for begin in range(0, len(item_p), _BLOCK_VECTORS):
        chosen = ascending[begin : begin + _BLOCK_VECTORS]
        bits_mD = np.ascontiguousarray(vectors.rows(item_p[chosen]), np.float32).view(np.uint32)
        hash_p[chosen] = (bits_mD * factors_D).sum(axis=1)
    return hash_p


def _ask_in_rounds(
    codes_nC: Codes, plays_n: npt.NDArray[np.int64], vectors: ItemVectors, search: _Search, queues: _Queues
) -> Codes:
    moved_nC, begin_Q = codes_nC.copy(), queues.begin_Q.copy()
    open_Q = np.arange(len(begin_Q))
    with Progress("re-assign tuples", len(queues.items), "items") as progress:
        while len(open_Q):
            items = queues.items[begin_Q[open_Q]]
            open_Q, items = open_Q[ascending := np.argsort(items)], items[ascending]
            keys = search.nearest_free(items, queues.prefix_Q[open_Q], codes_nC, vectors)
            won = _winners(keys, plays_n[items])
            moved_nC[items[won], -2:] = search.last_codes(keys[won])[:, -moved_nC.shape[1] :]
            search.take(keys[won])
            begin_Q[open_Q[won]] += 1
            ends = (keys < 0) | (begin_Q[open_Q] == queues.end_Q[open_Q])
            progress.advance(len(won) + int((queues.end_Q - begin_Q)[open_Q[keys < 0]].sum()))
            open_Q = open_Q[~ends]
    return moved_nC


def _winners(keys_m: Indices, plays_m: npt.NDArray[np.int64]) -> Indices:
    """Of those who ask for one key, where the most played stands, the first of equals; a key below 0 asks for none."""
    order = np.lexsort([-plays_m, keys_m])
    asked = keys_m[order]
    first = np.ones(len(order), bool)
    first[1:] = asked[1:] != asked[:-1]
    return order[first & (asked >= 0)]


class _Search:
    """Which tuples are taken, and which free one is nearest."""

    def __init__(self, quantizer: Quantizer, taken_keys: Indices) -> None:
        """Take the keys, ascending, of all tuples in use."""
        self.quantizer, self.codes = quantizer, quantizer.codes_per_level
        self.split = max(quantizer.num_levels - 2, 0)
        self.last_Vd = quantizer.codebooks_CVd[-1]
        self.before_last = quantizer.codebooks_CVd[-2] if quantizer.num_levels > 1 else np.zeros_like(self.last_Vd[:1])
        self.last_squares_V = np.square(self.last_Vd).sum(axis=1)
        # What is taken in the rounds is apart: to put it among all others would be to copy them every round.
        self.taken_keys, self.newly_taken_keys = taken_keys, np.empty(0, np.int64)

    def take(self, keys: Indices) -> None:
        """No later question is answered with these."""
        keys = np.sort(keys)
        self.newly_taken_keys = np.insert(self.newly_taken_keys, np.searchsorted(self.newly_taken_keys, keys), keys)

    def last_codes(self, keys_m: Indices) -> Codes:
        """The last two codes [m, 2] of keys."""
        return np.stack([keys_m // self.codes % self.codes, keys_m % self.codes], axis=1).astype(np.uint16)

    def nearest_free(self, items_m: Indices, prefix_m: Indices, codes_nC: Codes, vectors: ItemVectors) -> Indices:
        """Keys of the free tuples nearest to items, which ascend; -1 where all candidates are taken."""
        keys_m = np.empty(len(items_m), np.int64)
        block = max(1, _BLOCK_NUMBERS // (min(NEAREST, len(self.before_last)) * self.codes))
        for begin in range(0, len(items_m), block):
            items = items_m[begin : begin + block]
            wanted_md = self.quantizer.project(vectors.rows(items))
            wanted_md = wanted_md - sum_of_rows(self.quantizer.codebooks_CVd, codes_nC[items, : self.split])
            keys_m[begin : begin + block] = self._nearest_free(wanted_md, prefix_m[begin : begin + block])
        return keys_m

    def _nearest_free(self, wanted_md: Vectors, prefix_m: Indices) -> Indices:
        near_mk, squares_mk = _nearest(wanted_md, self.before_last)
        # ‖w - a - b‖² = ‖w - a‖² + ‖b‖² - 2 w·b + 2 a·b, with the products a·b once for each a of the block.
        used_u, place_mk = np.unique(near_mk, return_inverse=True)
        products_uV = 2 * self.before_last[used_u] @ self.last_Vd.T
        squares_mkV = products_uV[place_mk]
        squares_mkV += squares_mk[:, :, None]
        squares_mkV += (self.last_squares_V - 2 * wanted_md @ self.last_Vd.T)[:, None, :]
        keys_mk = (prefix_m[:, None] * self.codes + near_mk) * self.codes
        for taken in (self.taken_keys, self.newly_taken_keys):
            squares_mkV.reshape(-1)[_places_of(taken, keys_mk.ravel(), self.codes)] = np.inf
        squares_mX = squares_mkV.reshape(len(wanted_md), -1)
        best_m = squares_mX.argmin(axis=1)
        row_m = np.arange(len(best_m))
        keys_m = keys_mk[row_m, best_m // self.codes] + best_m % self.codes
        return np.where(np.isinf(squares_mX[row_m, best_m]), -1, keys_m)


def _nearest(wanted_md: Vectors, codebook_Vd: Vectors) -> tuple[Indices, Vectors]:
    """The k rows nearest to each vector [m, k], ascending, and their squared distances; of equals the lower row."""
    count = min(NEAREST, len(codebook_Vd))
    squares_mV = np.square(codebook_Vd).sum(axis=1) - 2 * wanted_md @ codebook_Vd.T
    squares_mV += np.square(wanted_md).sum(axis=1, keepdims=True)
    furthest_m1 = np.partition(squares_mV, count - 1, axis=1)[:, count - 1 :][:, :1]
    nearer_mV, equal_mV = squares_mV < furthest_m1, squares_mV == furthest_m1
    room_m1 = count - nearer_mV.sum(axis=1, keepdims=True)
    chosen_mV = nearer_mV | (equal_mV & (np.cumsum(equal_mV, axis=1) <= room_m1))
    rows = np.nonzero(chosen_mV)[1].reshape(-1, count)
    return rows, np.take_along_axis(squares_mV, rows, axis=1)


def _places_of(taken: Indices, keys_x: Indices, codes: int) -> Indices:
    """Where x · V + b is taken[…] - keys_x[x]: the taken among keys_x[x] … keys_x[x] + V - 1, all x laid end to end."""
    begin_x, end_x = np.searchsorted(taken, keys_x), np.searchsorted(taken, keys_x + codes)
    counts_x = end_x - begin_x
    of = np.repeat(np.arange(len(keys_x)), counts_x)
    at = np.arange(len(of)) - np.repeat(np.cumsum(counts_x) - counts_x, counts_x) + begin_x[of]
    places: Indices = of * codes + taken[at] - keys_x[of]
    return places
