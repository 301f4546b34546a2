"""How often items stand beside one another in training histories, counted in bounded memory.

Rows are counted a range of items at a time, each range in one pass over the events, and pruned before the next: memory
holds one range's pairs and what is kept of the others. A range is complete before it is pruned, so pruning by weight
is exact, and the result does not depend on how much memory a range was given.

N items · P pairs · R entries of a range of rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from common.errors import InputError
from common.progress import Progress
from data.training_events import TrainingEvents

RANGE_PAIRS = 2**25
"""Pairs collected before they are summed, 16 bytes each, and about as much again while they are sorted."""

MOST_WHOLE_HISTORY_PAIRS = 2**27
"""Counts over whole histories beyond this many pairs are refused: 12 bytes each, several times over while they are
made. Histories of n events hold Σ n² pairs, of which no more than N² differ."""

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Counts:
    """Co-occurrence of items (rows) with their neighbours (columns); an item is no neighbour of itself.

    Attributes:
        weights_NN: what was kept of each row.
        row_totals_N, column_totals_N: sums of everything counted, before any neighbour was pruned, so that pruning
            leaves out pairs and does not change what is said of the others.
    """

    weights_NN: sp.csr_matrix
    row_totals_N: Floats
    column_totals_N: Floats


def co_occurrence(
    events: TrainingEvents,
    window: int,
    *,
    neighbours_N: Mask | None = None,
    max_neighbours: int = 0,
    range_pairs: int = RANGE_PAIRS,
) -> Counts:
    """Weighted counts of pairs of different items in one training history.

    window > 0 counts pairs at most so many events apart, a pair at distance k weighing 1/k. window = 0 counts all
    pairs of a history of n events, each weighing 1/(n - 1), so that every event gives the same total.

    Args:
        neighbours_N: which items count as a neighbour (a column) of others, all where not given.
        max_neighbours: most neighbours kept of an item, the heaviest; of equal weight the lower index; 0 keeps all.
        range_pairs: what a range of rows may hold; changes memory and time, not the counts.

    Raises:
        InputError: window = 0, and the histories are too long for it.
    """
    if neighbours_N is None:
        neighbours_N = np.ones(events.num_items, bool)
    if window == 0:
        history_UN = _whole_histories(events)
        pairs_N = history_UN.astype(bool).T @ events.lengths_U.astype(np.float64)
        weighted = history_UN @ sp.diags(neighbours_N.astype(np.float64))
        columns = weighted.tocsr()
        rows = history_UN.T.tocsr()

        def count(begin: int, end: int) -> sp.csr_matrix:
            return _without_self((rows[begin:end] @ columns).tocsr(), begin)
    else:
        pairs_N = 2.0 * min(window, int(events.lengths_U.max(initial=0))) * events.plays_N

        def count(begin: int, end: int) -> sp.csr_matrix:
            return _window_rows(events, window, neighbours_N, begin, end, range_pairs)

    return _count_ranges(events.num_items, pairs_N, range_pairs, count, max_neighbours)


def _count_ranges(
    num_items: int,
    pairs_N: npt.NDArray[np.floating],
    range_pairs: int,
    count: Callable[[int, int], sp.csr_matrix],
    max_neighbours: int,
) -> Counts:
    """Count rows in ranges of about so many pairs, prune each range, and put them together."""
    parts: list[sp.csr_matrix] = []
    row_totals, column_totals_N = [], np.zeros(num_items)
    cuts = np.flatnonzero(np.diff(np.cumsum(pairs_N) // range_pairs)) + 1
    with Progress("co-occurrence", num_items, "items") as progress:
        for begin, end in itertools.pairwise([0, *cuts.tolist(), num_items]):
            part = count(begin, end)
            row_totals.append(np.asarray(part.sum(axis=1), np.float64).ravel())
            column_totals_N += np.bincount(part.indices, part.data, num_items)
            parts.append(heaviest(part, max_neighbours) if max_neighbours else part)
            progress.advance(end - begin)
    return Counts(sp.vstack(parts, format="csr"), np.concatenate(row_totals), column_totals_N)


def heaviest(part_RN: sp.csr_matrix, most: int) -> sp.csr_matrix:
    """The `most` heaviest entries of each row, of equal weight those of lower columns.

    Weights above 0, columns in order. Weights are compared in single precision, so that the rounding of sums does not
    tell equal ones apart.
    """
    degrees = np.diff(part_RN.indptr)
    over = degrees > most
    if not over.any():
        return part_RN
    row_R = np.repeat(np.arange(len(degrees), dtype=np.uint64), degrees)
    crowded = np.flatnonzero(over[row_R])
    begins, counts = np.cumsum(degrees[over]) - degrees[over], degrees[over]
    # Bits of positive floats ascend as the floats do: row after row, heavy before light. Sorting plain numbers is many
    # times as fast as sorting their places.
    lightness = ~part_RN.data[crowded].astype(np.float32).view(np.uint32)
    keys = row_R[crowded] << np.uint64(32) | lightness
    last = np.repeat(np.sort(keys)[begins + most - 1], counts)
    kept, equal = keys < last, keys == last
    place_among_equals = np.cumsum(equal) - np.repeat(np.cumsum(equal)[begins] - equal[begins], counts)
    kept |= equal & (place_among_equals <= most - np.repeat(np.add.reduceat(kept, begins, dtype=np.int64), counts))
    kept_R = np.ones(part_RN.nnz, bool)
    kept_R[crowded] = kept
    offsets = np.append(0, np.cumsum(np.minimum(degrees, most))).astype(part_RN.indptr.dtype)
    return sp.csr_matrix((part_RN.data[kept_R], part_RN.indices[kept_R], offsets), shape=part_RN.shape)


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────


def _window_rows(
    events: TrainingEvents, window: int, neighbours_N: Mask, begin: int, end: int, range_pairs: int
) -> sp.csr_matrix:
    """Rows [end - begin, N] of the items of a range: what stands around each of their events."""
    collected = _Pairs((end - begin, events.num_items), range_pairs)
    for block in events.blocks():
        if not len(block.users_E):
            continue
        longest = int(events.lengths_U[block.users_E[0] : block.users_E[-1] + 1].max())
        reach = min(window, longest - 1)
        # Nobody's events before and after the block, so that every neighbour may be looked at.
        users_E, items_E = np.pad(block.users_E, reach, constant_values=-1), np.pad(block.items_E, reach)
        own = np.flatnonzero((items_E >= begin) & (items_E < end) & (users_E >= 0))
        for distance in range(1, reach + 1):
            for there in (own - distance, own + distance):
                other = items_E[there]
                paired = (users_E[there] == users_E[own]) & (other != items_E[own]) & neighbours_N[other]
                collected.add(items_E[own[paired]] - begin, other[paired], 1 / distance)
    return collected.total()


class _Pairs:
    """Weighted pairs, summed whenever so many have come that memory would grow with the events."""

    def __init__(self, shape: tuple[int, int], most: int) -> None:
        self._shape, self._most = shape, most
        self._waiting: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], float]] = []
        self._count = 0
        self._sum: sp.csr_matrix | None = None

    def add(self, rows_P: npt.NDArray[np.int64], columns_P: npt.NDArray[np.int64], weight: float) -> None:
        """Count pairs that weigh the same."""
        self._waiting.append((rows_P.astype(np.int32), columns_P.astype(np.int32), weight))
        self._count += len(rows_P)
        if self._count > 2 * self._most:
            self.total()

    def total(self) -> sp.csr_matrix:
        """The sums so far, columns in order."""
        none = np.zeros(0, np.int32)
        rows = np.concatenate([none, *(rows for rows, _, _ in self._waiting)])
        columns = np.concatenate([none, *(columns for _, columns, _ in self._waiting)])
        weights = np.concatenate([np.zeros(0), *(np.full(len(rows), weight) for rows, _, weight in self._waiting)])
        self._waiting, self._count = [], 0
        summed = sp.csr_matrix((weights, (rows, columns)), shape=self._shape)
        self._sum = summed if self._sum is None else self._sum + summed
        self._sum.sort_indices()
        return self._sum


# ── whole histories ──────────────────────────────────────────────────────────────────────────────────────


def _whole_histories(events: TrainingEvents) -> sp.csr_matrix:
    """[U, N]: how often a user played an item, by 1/√(length - 1).

    Raises:
        InputError: too many pairs for the memory of a machine.
    """
    pairs = min(float(np.square(events.lengths_U, dtype=np.float64).sum()), float(events.num_items) ** 2)
    if pairs > MOST_WHOLE_HISTORY_PAIRS:
        raise InputError(
            f"`collaborative.window` is 0, which counts every pair of a history, and the {events.num_events:,} training"
            f" events of {int((events.lengths_U > 0).sum()):,} users hold {pairs:,.0f} pairs, the longest history"
            f" {int(events.lengths_U.max()):,} events; the limit is {MOST_WHOLE_HISTORY_PAIRS:,} pairs; set"
            " collaborative.window=5, or more, to count pairs at most so many events apart"
        )
    weight_U = 1 / np.sqrt(np.maximum(events.lengths_U - 1, 1))
    parts = [(block.users_E.astype(np.int32), block.items_E.astype(np.int32)) for block in events.blocks()]
    users, items = (np.concatenate([np.zeros(0, np.int32), *column]) for column in zip(*parts, strict=True))
    return sp.csr_matrix((weight_U[users], (users, items)), shape=(events.num_users, events.num_items))


def _without_self(part_RN: sp.csr_matrix, begin: int) -> sp.csr_matrix:
    """Rows from `begin` on without their diagonal: a replayed item says nothing of its neighbours."""
    part_RN.sort_indices()
    degrees = np.diff(part_RN.indptr)
    other_R = part_RN.indices != np.repeat(np.arange(begin, begin + len(degrees)), degrees)
    other_R &= part_RN.data != 0
    offsets = np.append(0, np.cumsum(other_R))[part_RN.indptr]
    return sp.csr_matrix((part_RN.data[other_R], part_RN.indices[other_R], offsets), shape=part_RN.shape)
