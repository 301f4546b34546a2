"""Search among vectors, by FAISS: full lists, whatever is excluded, and exact comparison, whatever the index.

n columns (items that may be returned) · D vector width · G distinct vectors · K list length · X queries · x queries of
a block · d vectors that the index is asked for · y vectors of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from common.errors import InputError
from serving.engines.exclusions import DistinctVectors, Exclusions, Floats, Ints, best_columns
from serving.engines.index_building import (
    FLAT,
    HNSW,
    INNER_PRODUCT,
    IVFPQ,
    KINDS,
    L2,
    BuiltIndex,
    IndexConfig,
    build_index,
    engine_name,
    faiss,
)

__all__ = ["FLAT", "HNSW", "INNER_PRODUCT", "IVFPQ", "KINDS", "L2", "IndexConfig", "VectorIndex", "engine_name"]

_BLOCK_NUMBERS = 1 << 22
"""Numbers of vectors that are gathered or scanned at a time."""

_DEEPEST = 1 << 14
"""Vectors that an index is asked for at most, unless a list is longer. Who needs more, because nearly everything near
has been excluded, is served by a scan."""

_FEWEST = 16
"""Places for which candidates are asked, also of a shorter list."""

_GPU_DEEPEST = 2048
"""FAISS gives no more on a GPU."""


class VectorIndex:
    """Finds the columns whose vectors are nearest to a query, or have the largest inner product with it.

    A list is full: it holds K columns, or as many as there are that are not excluded for the user. The index is asked
    for a few more vectors than K; only for users whose list is short because of what is excluded is it asked again,
    for twice as many each time, with twice the probes or twice the walk. In the end all vectors are scanned.

    What is returned has been compared exactly, in float32, whatever the index: an approximate index can miss a column,
    but it neither misjudges nor misplaces one. Equal vectors stand in the index once, and their columns come in order.

    Two indexes of the same vectors and configuration are the same on one machine. Building holds, beside the vectors
    and the index, a block and the training sample.

    Where FAISS was built for CUDA and a GPU is there, flat and ivfpq are searched on it; a graph always stays on the
    CPU. That has not been run: the FAISS that this project installs is of the CPU, which has no GPU classes. If the
    index cannot be put there, it stays on the CPU, and `notes` says why.

    Args:
        vectors_nD: float32, a row a column, finite; may be mapped from a file. flat and hnsw copy
            them, and the given array is not needed after that; ivfpq reads them where they are.
        config: which index.
        metric: `L2` or `INNER_PRODUCT`.
        build: gives the index of the distinct vectors where it is not to be built anew (`index_files.py`).

    Raises:
        InputError: vectors that are not finite.
    """

    def __init__(
        self,
        vectors_nD: Floats,
        config: IndexConfig | None = None,
        metric: str = L2,
        *,
        build: Callable[[Floats], BuiltIndex] | None = None,
    ) -> None:
        assert metric in (L2, INNER_PRODUCT), metric
        assert vectors_nD.dtype == np.dtype(np.float32), vectors_nD.dtype
        assert vectors_nD.ndim == 2, vectors_nD.shape
        self.config, self.metric = config or IndexConfig(), metric
        _check_finite(vectors_nD)
        self.distinct = DistinctVectors(vectors_nD)
        distinct_GD = self.distinct.vectors_GD
        self.built = build(distinct_GD) if build else build_index(distinct_GD, self.config, metric)
        self.vectors_GD = self.distinct.vectors_GD = self.built.vectors_nD

    @property
    def kind(self) -> str:
        """What is searched; not what was asked for, where there are too few vectors for that."""
        return self.built.kind

    @property
    def notes(self) -> list[str]:
        """Where the index differs from what was asked for, and why."""
        return self.built.notes

    @property
    def _candidates_a_place(self) -> int:
        return self.config.refine if self.kind == IVFPQ else 1

    @property
    def num_columns(self) -> int:
        """n."""
        return self.distinct.num_columns

    def exclusions(self, users_P: Ints, columns_P: Ints) -> Exclusions:
        """Pairs that a search must not return."""
        return Exclusions(users_P, columns_P, self.distinct)

    def search(
        self, queries_XD: Floats, k: int, exclusions: Exclusions | None = None, users_X: Ints | None = None
    ) -> tuple[Floats, Ints]:
        """The best k columns for each query, best first; of equal ones, the lower column first.

        Args:
            queries_XD: float32.
            k: list length, at least 1.
            exclusions: what must not be returned, by user.
            users_X: the user of each query; query i is user i's where it is not given.

        Returns:
            Squared distances, or inner products, [X, K], and columns [X, K]. Where fewer than k columns are left for a
            user, places at the end hold column −1 at an infinite distance, or a product of −∞.
        """
        num_queries = len(queries_XD)
        nobody = np.empty(0, np.int64)
        exclusions = exclusions or self.exclusions(nobody, nobody)
        users_X = np.arange(num_queries) if users_X is None else users_X
        costs_XK = np.full((num_queries, k), np.inf, np.float32)
        columns_XK = np.full((num_queries, k), -1, np.int64)
        available_X = self.num_columns - exclusions.per_user(users_X)
        # Of candidates in an order that is only nearly right, the best k are not k of them but k of several times k.
        enough_X = np.minimum(max(k, _FEWEST) * self._candidates_a_place, available_X)
        open_X = np.flatnonzero(available_X > 0)
        for depth, effort in self._attempts(k):
            seen_X = np.zeros(num_queries, np.int64)
            block = max(1, _BLOCK_NUMBERS // max(1, depth * self.vectors_GD.shape[1]))
            for start in range(0, len(open_X), block):
                own = open_X[start : start + block]
                queries_xD, users_x = np.ascontiguousarray(queries_XD[own]), users_X[own]
                if effort:
                    groups_xd = self._near(queries_xD, depth, effort)
                else:
                    groups_xd = self._scan(queries_xD, depth, exclusions, users_x)
                costs_xd = self._costs(queries_xD, groups_xd)
                costs_XK[own], columns_XK[own], seen_X[own] = best_columns(
                    costs_xd, groups_xd, k, self.distinct, exclusions, users_x
                )
            open_X = open_X[seen_X[open_X] < enough_X[open_X]] if effort else open_X[:0]
        assert not len(open_X), "a scan, or all vectors of a flat index, fill every list"
        return (costs_XK if self.metric == L2 else -costs_XK), columns_XK

    def _attempts(self, k: int) -> Iterator[tuple[int, int]]:
        """Vectors to ask for and how hard to look, each time for those whose lists are short; effort 0 is a scan."""
        size, effort = len(self.distinct), 1
        depth = (max(k, _FEWEST) * 5 // 4 + _FEWEST) * self._candidates_a_place
        most = _GPU_DEEPEST if self.built.on_gpu else max(_DEEPEST, depth)
        while depth <= most and (2 * depth <= size or self.kind == FLAT):
            yield min(depth, size), effort
            if depth >= size:
                return
            depth, effort = 2 * depth, 2 * effort
        # Every vector that it gives carries a column for the user, so that k and a few for rounding are enough.
        yield min(k + _FEWEST, size), 0

    def _near(self, queries_xD: Floats, depth: int, effort: int) -> Ints:
        """Vectors [x, d] that the index gives; −1 where it gives fewer."""
        parameters = None
        if self.kind == IVFPQ:
            parameters = faiss.SearchParametersIVF(nprobe=min(self.built.index.nlist, self.config.probes * effort))
        elif self.kind == HNSW:
            parameters = faiss.SearchParametersHNSW(efSearch=max(self.config.ef_search * effort, depth))
        groups_xd: Ints = self.built.index.search(queries_xD, depth, params=parameters)[1]
        return groups_xd

    def _costs(self, queries_xD: Floats, groups_xd: Ints) -> Floats:
        """Squared distances, or inner products with the sign turned, of vectors [x, d]; of −1, those of any vector."""
        numbers_xdD = self.vectors_GD[groups_xd]
        if self.metric == L2:
            numbers_xdD -= queries_xD[:, None]
            np.square(numbers_xdD, out=numbers_xdD)
        else:
            numbers_xdD *= -queries_xD[:, None]
        costs_xd: Floats = numbers_xdD.sum(axis=2)
        return costs_xd

    def _scan(self, queries_xD: Floats, k: int, exclusions: Exclusions, users_x: Ints) -> Ints:
        """The best k vectors that carry a column that is not excluded for the user, [x, ≤ k]; −1 for none."""
        num_queries, width = queries_xD.shape
        costs, groups = np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), np.int64)
        block = max(k, _BLOCK_NUMBERS // max(width, num_queries))
        for first in range(0, len(self.distinct), block):
            vectors_yD = np.asarray(self.vectors_GD[first : first + block])
            costs_xy = queries_xD @ vectors_yD.T
            costs_xy *= -1 if self.metric == INNER_PRODUCT else -2
            if self.metric == L2:
                costs_xy += np.einsum("yD,yD->y", vectors_yD, vectors_yD)
            row, group = exclusions.used_up(users_x, first, first + len(vectors_yD))
            costs_xy[row, group - first] = np.inf
            groups_xy = np.broadcast_to(np.arange(first, first + len(vectors_yD)), costs_xy.shape)
            costs, groups = _cheapest(
                np.concatenate([costs, costs_xy], axis=1), np.concatenate([groups, groups_xy], axis=1), k
            )
        return np.where(np.isposinf(costs), -1, groups)


def _cheapest(costs_xy: Floats, groups_xy: Ints, k: int) -> tuple[Floats, Ints]:
    """The k cheapest of each row, in any order."""
    if costs_xy.shape[1] <= k:
        return costs_xy, groups_xy
    order = np.argpartition(costs_xy, k - 1, axis=1)[:, :k]
    return np.take_along_axis(costs_xy, order, 1), np.take_along_axis(groups_xy, order, 1)


def _check_finite(vectors_nD: Floats) -> None:
    """Refuse vectors that cannot be compared."""
    block = max(1, _BLOCK_NUMBERS // max(1, vectors_nD.shape[1]))
    for first in range(0, len(vectors_nD), block):
        bad = np.flatnonzero(~np.isfinite(vectors_nD[first : first + block]).all(axis=1))
        if len(bad):
            raise InputError(
                f"item vectors: row {first + bad[0]} holds a number that is not finite, so that no distance to it is"
                " defined; the model that gave them has diverged, or its file is damaged"
            )
