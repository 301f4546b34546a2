"""Pairs that must not be returned, and vectors that several columns share: what a search has to know beside vectors.

n columns (items that may be returned) · D vector width · G distinct vectors · P pairs · X pairs asked about · B users
in the batch · M candidates a user · K list length.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from torch import Tensor

from serving.engines.base import Query, RankedCatalogue

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_BLOCK_NUMBERS = 1 << 22
"""Numbers of vectors looked at at a time."""


class DistinctVectors:
    """Vectors without their repetitions, and the columns that carry each.

    Items of one code tuple have one vector. Kept once, they cannot fill a list of neighbours on their own, come out of
    a search in the order of their columns whatever its rounding, and do not break a graph index, in which many points
    at one place are linked to one another alone.

    Args:
        vectors_nD: float32, finite; zeros of either sign are equal.
    """

    def __init__(self, vectors_nD: Floats) -> None:
        self.num_columns = len(vectors_nD)
        first_G, group_n = _groups_of(vectors_nD)
        self.all_differ = len(first_G) == self.num_columns
        self.vectors_GD = vectors_nD if self.all_differ else vectors_nD[first_G]
        if not self.all_differ:
            self._group_n = group_n
            self._members_n: Ints = np.argsort(group_n, kind="stable")
            self._offsets_G1 = np.zeros(len(first_G) + 1, np.int64)
            np.cumsum(np.bincount(group_n, minlength=len(first_G)), out=self._offsets_G1[1:])

    def __len__(self) -> int:
        """G."""
        return len(self.vectors_GD)

    def sizes(self, groups_X: Ints) -> Ints:
        """How many columns carry each of some vectors."""
        if self.all_differ:
            return np.ones_like(groups_X)
        sizes_X: Ints = self._offsets_G1[groups_X + 1] - self._offsets_G1[groups_X]
        return sizes_X

    def groups(self, columns_X: Ints) -> Ints:
        """The vector of each column."""
        return columns_X if self.all_differ else self._group_n[columns_X]

    def columns(self, groups_X: Ints, most_X: Ints) -> tuple[Ints, Ints]:
        """The first columns of vectors, at most so many of each: (position in `groups_X`, column)."""
        counts_X = np.minimum(self.sizes(groups_X), most_X)
        position = np.repeat(np.arange(len(groups_X)), counts_X)
        if self.all_differ:
            return position, groups_X[position]
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts_X) - counts_X, counts_X)
        return position, self._members_n[self._offsets_G1[groups_X[position]] + within]


class Exclusions:
    """Which columns must not be returned to which users.

    Args:
        users_P: of each pair; a pair may come more than once.
        columns_P: its column, 0 … n − 1.
        distinct: the vectors that the columns carry.
    """

    def __init__(self, users_P: Ints, columns_P: Ints, distinct: DistinctVectors) -> None:
        self._num_columns, self._num_groups = distinct.num_columns, len(distinct)
        pairs_P = np.sort(users_P * self._num_columns + columns_P)
        # np.unique of whole numbers hashes them, and is ten times slower than sorting.
        self._pairs: Ints = pairs_P[np.diff(pairs_P, prepend=-1) > 0]
        users, columns = np.divmod(self._pairs, max(1, self._num_columns))
        self._group_pairs, self._group_counts = np.unique(
            users * self._num_groups + distinct.groups(columns), return_counts=True
        )
        self._per_user = np.bincount(users)
        self._used_up = self._group_pairs[
            self._group_counts == distinct.sizes(self._group_pairs % max(1, self._num_groups))
        ]

    def per_user(self, users_X: Ints) -> Ints:
        """How many columns each of some users is not to be given."""
        counts_X = np.zeros(len(users_X), np.int64)
        known_X = users_X < len(self._per_user)
        counts_X[known_X] = self._per_user[users_X[known_X]]
        return counts_X

    def used_up(self, users_x: Ints, first: int, stop: int) -> tuple[Ints, Ints]:
        """Vectors first … stop − 1 all of whose columns are excluded for a user: (position in `users_x`, vector)."""
        begin_x, end_x = (np.searchsorted(self._used_up, users_x * self._num_groups + at) for at in (first, stop))
        counts_x = end_x - begin_x
        position = np.repeat(np.arange(len(users_x)), counts_x)
        at = np.arange(len(position)) + (begin_x - (np.cumsum(counts_x) - counts_x))[position]
        return position, self._used_up[at] - users_x[position] * self._num_groups

    def contain(self, users_X: Ints, columns_X: Ints) -> npt.NDArray[np.bool_]:
        """Whether each pair of a user and a column is excluded."""
        return _find(self._pairs, users_X * self._num_columns + columns_X)[1]

    def per_group(self, users_X: Ints, groups_X: Ints) -> Ints:
        """How many of the columns that carry a vector are excluded for a user, for each pair of the two."""
        at_X, found_X = _find(self._group_pairs, users_X * self._num_groups + groups_X)
        counts_X = np.zeros(len(users_X), np.int64)
        counts_X[found_X] = self._group_counts[at_X[found_X]]
        return counts_X


def excluded_columns(query: Query, catalogue: RankedCatalogue) -> tuple[Ints, Ints]:
    """The pairs of a query as (user, column); items that nobody may be given have no column and are left out."""
    columns_P = catalogue.column_of_item[query.excluded_items].cpu().numpy()
    returnable_P = columns_P >= 0
    return query.excluded_rows.cpu().numpy()[returnable_P], columns_P[returnable_P]


def best_of_allowed(
    catalogue: RankedCatalogue, columns_BM: Tensor, scores_BM: Tensor, query: Query, k: int
) -> tuple[Tensor, Tensor]:
    """`RankedCatalogue.top_of` for candidates among which nothing is excluded any more.

    Args:
        columns_BM: −1, with a score of −∞, for none.
    """
    nothing = query.excluded_rows[:0]
    query = dataclasses.replace(query, excluded_rows=nothing, excluded_items=nothing)
    if not catalogue.size:  # there is no column that could stand for none
        columns_BM, scores_BM = columns_BM[:, :0], scores_BM[:, :0]
    return catalogue.top_of(columns_BM, scores_BM, query, k)


def _find(sorted_values: Ints, wanted_X: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Where each wanted value would stand, and whether it does."""
    at_X = np.searchsorted(sorted_values, wanted_X)
    found_X = at_X < len(sorted_values)
    found_X[found_X] = sorted_values[at_X[found_X]] == wanted_X[found_X]
    return at_X, found_X


def _groups_of(vectors_nD: Floats) -> tuple[Ints, Ints]:
    """The first column of each distinct vector, ascending, and which distinct vector each column carries."""
    _, first, group_n = np.unique(_row_names(vectors_nD), return_index=True, return_inverse=True)
    first, group_n = _by_first(first, group_n)
    block = max(1, _BLOCK_NUMBERS // max(1, vectors_nD.shape[1]))
    for start in range(0, len(vectors_nD), block):
        rows = slice(start, start + block)
        if not np.array_equal(vectors_nD[rows], vectors_nD[first[group_n[rows]]]):
            # Two vectors share a name, which for vectors of few distinct numbers can happen: compare them themselves.
            _, first, group_n = np.unique(vectors_nD, axis=0, return_index=True, return_inverse=True)
            return _by_first(first, group_n)
    return first, group_n


def _by_first(first_G: Ints, group_n: Ints) -> tuple[Ints, Ints]:
    """Renumber groups by where each first comes."""
    order_G = np.argsort(first_G)
    number_G = np.empty_like(order_G)
    number_G[order_G] = np.arange(len(order_G))
    return first_G[order_G], number_G[group_n]


def _row_names(vectors_nD: Floats) -> npt.NDArray[np.uint64]:
    """A number for each vector: equal vectors, equal numbers; seldom otherwise."""
    odd_D = np.random.default_rng(0).integers(0, 1 << 63, vectors_nD.shape[1], dtype=np.uint64) * np.uint64(2)
    odd_D += np.uint64(1)
    names_n = np.empty(len(vectors_nD), np.uint64)
    block = max(1, _BLOCK_NUMBERS // max(1, vectors_nD.shape[1]))
    for start in range(0, len(vectors_nD), block):
        rows_xD = np.asarray(vectors_nD[start : start + block], np.float32) + np.float32(0)  # of -0, 0
        words_xD = np.ascontiguousarray(rows_xD).view(np.uint32).astype(np.uint64)
        words_xD ^= words_xD << np.uint64(32)
        names_n[start : start + block] = (words_xD * odd_D).sum(axis=1, dtype=np.uint64)
    return names_n


def best_columns(
    costs_xd: Floats, groups_xd: Ints, k: int, distinct: DistinctVectors, exclusions: Exclusions, users_x: Ints
) -> tuple[Floats, Ints, Ints]:
    """The cheapest columns of some vectors that are not excluded.

    Args:
        costs_xd: of each vector for a query.
        groups_xd: the vectors, each at most once a query; −1 for none.
        users_x: the user of each query.

    Returns:
        Costs and columns [x, k], +∞ and −1 where none is left, and how many columns there were to choose from [x].
    """
    order = np.argsort(np.where(groups_xd < 0, np.inf, costs_xd), axis=1, kind="stable")
    costs_xd, groups_xd = np.take_along_axis(costs_xd, order, 1), np.take_along_axis(groups_xd, order, 1)
    row_S, slot_S = np.nonzero(groups_xd >= 0)
    group_S = groups_xd[row_S, slot_S]
    excluded_S = exclusions.per_group(users_x[row_S], group_S)
    left_xd = np.zeros(groups_xd.shape, np.int64)
    left_xd[row_S, slot_S] = distinct.sizes(group_S) - excluded_S
    # Vectors are taken until they carry k columns, and with the last those at its cost: ties go by column.
    before_xd = np.cumsum(left_xd, axis=1) - left_xd
    taken_xd = (left_xd > 0) & (before_xd < k)
    dearest_x = np.where(taken_xd, costs_xd, -np.inf).max(axis=1, initial=-np.inf)
    taken_xd |= (left_xd > 0) & (costs_xd == dearest_x[:, None])
    taken_S = taken_xd[row_S, slot_S]
    row_S, slot_S, group_S, excluded_S = (values[taken_S] for values in (row_S, slot_S, group_S, excluded_S))
    position, column = distinct.columns(group_S, k + excluded_S)
    row, cost = row_S[position], costs_xd[row_S, slot_S][position]
    returnable = ~exclusions.contain(users_x[row], column)
    return *_lists(row[returnable], cost[returnable], column[returnable], len(costs_xd), k), left_xd.sum(axis=1)


def _lists(row: Ints, cost: Floats, column: Ints, num_rows: int, k: int) -> tuple[Floats, Ints]:
    """Entries of rows as lists [num_rows, k], by cost, then by column."""
    order = np.lexsort((column, cost, row))
    row, cost, column = row[order], cost[order], column[order]
    begin = np.searchsorted(row, np.arange(num_rows))
    place = np.arange(len(row)) - begin[row]
    kept = place < k
    costs_xk = np.full((num_rows, k), np.inf, np.float32)
    columns_xk = np.full((num_rows, k), -1, np.int64)
    costs_xk[row[kept], place[kept]] = cost[kept]
    columns_xk[row[kept], place[kept]] = column[kept]
    return costs_xk, columns_xk
