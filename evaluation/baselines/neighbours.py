"""Which items stand beside which in training histories: a table of each item's nearest neighbours, in bounded memory.

Rows are counted a range of items at a time, weighed and pruned before the next range: memory holds the training events,
one range's pairs, and what is kept of the others. What comes out does not depend on how the ranges are cut.

With c_ij the pairs of items i and j, f_i the events of i (window) or the users who played it (whole histories), and
a_u = log(1 + N / n_u)² a weight by which the n_u events of a user with few of them say more than those of one who
played everything, scaled so that an event weighs 1 in the mean:

    cosine      c_ij / (√(f_i f_j) + s)
    tfidf       the same, pairs and events weighed by their user's a_u
    bm25        c_ij g_i g_j, weighed so too, g_i = 1 / (k (1 − b + b f_i / mean f) + 1): BM25's saturation, an item
                being the document and its users the words

E training events · U users · N items · R entries of a range of rows · P pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from common.config import option
from common.errors import InputError
from common.progress import Progress, format_count
from evaluation.baselines.training_log import TrainingLog
from semantic_ids.vectors.co_occurrence import heaviest

COSINE, TFIDF, BM25 = "cosine", "tfidf", "bm25"

BM25_K, BM25_B = 1.2, 0.75
"""The usual constants of BM25."""

RANGE_PAIRS = 2**24
"""Pairs counted at once, `PAIR_BYTES` each while they are summed."""
PAIR_BYTES = 64
EVENT_BYTES = 32
ENTRY_BYTES = 24
"""Of a neighbour that is kept: 12 while the parts of the table are there, 12 of the table they become."""

MOST_PAIRS = 2**32
"""Refused beyond: at three to five million pairs a second and core, a fit of half an hour or less stays within."""

Floats = npt.NDArray[np.float64]


@dataclass
class NeighboursConfig:
    """How the similarity of two items is counted, and how much of it is kept."""

    window: int = option(
        10, "events at most so far apart in a history make a pair, each time; 0 = any two, once a user", minimum=0
    )
    weighting: str = option(COSINE, "how pairs become a similarity", choices=(COSINE, TFIDF, BM25))
    shrinkage: float = option(10.0, "cosine and tfidf: pairs that are missing from both items", minimum=0)
    neighbours: int = option(200, "most similar items kept of an item; of equal ones the lower index", minimum=1)
    min_plays: int = option(1, "an item played less often in training is no neighbour of others", minimum=1)
    newest: int = option(0, "training events that count of a user, the newest; 0 = all", minimum=0)


def neighbour_table(
    log: TrainingLog, config: NeighboursConfig, memory_gb: float, range_pairs: int = RANGE_PAIRS, *, quiet: bool = False
) -> sp.csr_matrix:
    """[N, N] float32: of each item (row) its most similar others, similarities above 0.

    Args:
        memory_gb: the most that counting may take, in 10⁹ bytes.
        range_pairs: what a range of rows may hold; changes memory and time, not the table.
        quiet: show no progress.

    Raises:
        InputError: it would take more memory than that, or more pairs than `MOST_PAIRS`.
    """
    pairing: _Windows | _WholeHistories = _Windows(log, config) if config.window else _WholeHistories(log, config)
    _check_cost(log, config, pairing.pairs_N, memory_gb, range_pairs)
    pairing.collect()
    finish = _similarity(config, pairing.frequency_N)
    cuts = np.flatnonzero(np.diff(np.cumsum(pairing.pairs_N) // range_pairs)) + 1
    parts: list[sp.csr_matrix] = []
    with Progress("neighbours of items", log.num_items, "items", quiet=quiet) as progress:
        for begin, end in itertools.pairwise([0, *cuts.tolist(), log.num_items]):
            counts_RN = _without_self(pairing.rows(begin, end), begin)
            part = heaviest(finish(counts_RN, begin), config.neighbours)
            parts.append(sp.csr_matrix((part.data.astype(np.float32), part.indices, part.indptr), shape=part.shape))
            progress.advance(end - begin)
    return sp.vstack(parts, format="csr")


def _check_cost(
    log: TrainingLog, config: NeighboursConfig, pairs_N: Floats, memory_gb: float, range_pairs: int
) -> None:
    pairs = float(pairs_N.sum())
    kept = float(np.minimum(np.minimum(pairs_N, config.neighbours), log.num_items).sum())
    largest = max(range_pairs, float(pairs_N.max())) * PAIR_BYTES
    needed_gb = (log.num_events * EVENT_BYTES + min(largest, pairs * PAIR_BYTES) + kept * ENTRY_BYTES) / 1e9
    faults = []
    if pairs > MOST_PAIRS:
        less = "window" if config.window else "newest, or set baseline.item_knn.window above 0"
        faults.append(
            f"`baseline.item_knn.window` is {config.window}: the training events hold {format_count(pairs)} pairs, and"
            f" the limit is {format_count(MOST_PAIRS)}; lower baseline.item_knn.{less}"
        )
    if needed_gb > memory_gb:
        faults.append(
            f"`baseline.item_knn.neighbours` is {config.neighbours}: counting {format_count(log.num_events)} training"
            f" events and keeping so many neighbours of {format_count(log.num_items)} items takes about"
            f" {needed_gb:.1f} GB, and `baseline.memory_gb` is {memory_gb:g}; lower baseline.item_knn.neighbours or"
            " baseline.item_knn.newest, or raise baseline.memory_gb"
        )
    if faults:
        raise InputError(*faults)


def _similarity(config: NeighboursConfig, frequency_N: Floats) -> Callable[[sp.csr_matrix, int], sp.csr_matrix]:
    """What turns the counts [R, N] of the items from `begin` on into similarities."""
    if config.weighting == BM25:
        played_N = frequency_N > 0
        length_N = 1 - BM25_B + BM25_B * frequency_N / frequency_N[played_N].mean()
        factor_N = 1 / (BM25_K * length_N + 1)
    else:
        factor_N = np.sqrt(frequency_N)

    def finish(counts_RN: sp.csr_matrix, begin: int) -> sp.csr_matrix:
        rows = np.repeat(np.arange(begin, begin + counts_RN.shape[0]), np.diff(counts_RN.indptr))
        factor = factor_N[rows] * factor_N[counts_RN.indices]
        counts = counts_RN.data
        data = counts * factor if config.weighting == BM25 else counts / (factor + config.shrinkage)
        return sp.csr_matrix((data, counts_RN.indices, counts_RN.indptr), shape=counts_RN.shape)

    return finish


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────


class _Pairing:
    """What both ways of pairing need: the events that count, and what a user's weigh."""

    pairs_N: Floats
    """An upper bound of the pairs of each row."""
    frequency_N: Floats

    def __init__(self, log: TrainingLog, config: NeighboursConfig) -> None:
        self.log, self.config = log, config
        self.lengths_U = np.minimum(log.lengths_U, config.newest) if config.newest else log.lengths_U
        self.neighbour_N = log.plays_N >= config.min_plays
        self.weight_U = np.ones(log.num_users)
        if config.weighting != COSINE:
            self.weight_U = np.log1p(log.num_items / np.maximum(self.lengths_U, 1)) ** 2
            self.weight_U *= self.lengths_U.sum() / (self.weight_U @ self.lengths_U)

    def events(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """User and item of each event that counts."""
        users, items = [], []
        end_U = np.cumsum(self.log.lengths_U)
        seen = 0
        for block in self.log.blocks():
            age_E = end_U[block.users_E] - 1 - np.arange(seen, seen + len(block.users_E))
            seen += len(block.users_E)
            counts_E = age_E < self.lengths_U[block.users_E]
            users.append(block.users_E[counts_E].astype(np.int32))
            items.append(block.items_E[counts_E].astype(np.int32))
        return np.concatenate(users), np.concatenate(items)


class _Windows(_Pairing):
    """Pairs at most so many events apart, counted each time."""

    def __init__(self, log: TrainingLog, config: NeighboursConfig) -> None:
        super().__init__(log, config)
        self.reach = min(config.window, int(self.lengths_U.max()) - 1)
        # With `newest`, fewer events may count than were played: this is an upper bound.
        self.pairs_N = (2.0 * self.reach) * log.plays_N.astype(np.float64)

    def collect(self) -> None:
        """Read the events into memory, ordered by user and by item."""
        self.users_E, self.items_E = self.events()
        # Stable: a row's pairs are summed in the order of the log, however the rows are cut.
        self.by_item_E = np.argsort(self.items_E, kind="stable")
        self.item_begin_N1 = np.append(0, np.cumsum(np.bincount(self.items_E, minlength=self.log.num_items)))
        self.frequency_N = np.bincount(self.items_E, self.weight_U[self.users_E], self.log.num_items).astype(np.float64)

    def rows(self, begin: int, end: int) -> sp.csr_matrix:
        """Pairs [end - begin, N] of the items of a range."""
        own = self.by_item_E[self.item_begin_N1[begin] : self.item_begin_N1[end]]
        rows, columns, weights = [], [], []
        for distance in [*range(-self.reach, 0), *range(1, self.reach + 1)]:
            there = own + distance
            inside = (there >= 0) & (there < len(self.items_E))
            mine, there = own[inside], there[inside]
            paired = (self.users_E[there] == self.users_E[mine]) & self.neighbour_N[self.items_E[there]]
            mine, there = mine[paired], there[paired]
            rows.append(self.items_E[mine] - begin)
            columns.append(self.items_E[there])
            weights.append(self.weight_U[self.users_E[mine]])
        if not rows:
            return sp.csr_matrix((end - begin, self.log.num_items))
        return sp.coo_matrix(
            (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))),
            shape=(end - begin, self.log.num_items),
        ).tocsr()


class _WholeHistories(_Pairing):
    """Pairs of any two items of a history, once a user."""

    def __init__(self, log: TrainingLog, config: NeighboursConfig) -> None:
        super().__init__(log, config)
        users, items = self.events()
        played_UN = sp.csr_matrix(
            (np.ones(len(users), bool), (users, items)), shape=(log.num_users, log.num_items)
        )  # of bools, a sum is whether there is any
        self.users_NU = played_UN.T.tocsr()
        self.pairs_N = self.users_NU.astype(np.float64) @ np.diff(played_UN.indptr)
        self.items_UN = played_UN

    def collect(self) -> None:
        """Weigh the users, and leave out who is no neighbour."""
        self.frequency_N = self.users_NU.astype(np.float64) @ self.weight_U
        weighed = sp.diags(self.weight_U) @ self.items_UN.astype(np.float64)
        self.items_UN = (weighed @ sp.diags(self.neighbour_N.astype(np.float64))).tocsr()
        self.items_UN.eliminate_zeros()

    def rows(self, begin: int, end: int) -> sp.csr_matrix:
        """Pairs [end - begin, N] of the items of a range."""
        return (self.users_NU[begin:end].astype(np.float64) @ self.items_UN).tocsr()


def _without_self(counts_RN: sp.csr_matrix, begin: int) -> sp.csr_matrix:
    """Rows from `begin` on without their diagonal, columns in order: a replay says nothing of an item's neighbours."""
    counts_RN.sort_indices()
    other_R = counts_RN.indices != np.repeat(np.arange(begin, begin + counts_RN.shape[0]), np.diff(counts_RN.indptr))
    offsets = np.append(0, np.cumsum(other_R))[counts_RN.indptr]
    return sp.csr_matrix((counts_RN.data[other_R], counts_RN.indices[other_R], offsets), shape=counts_RN.shape)
