"""Where item vectors come from: the store's content embeddings, or what training histories tell of the items.

The leakage rule: collaborative vectors are a function of TRAINING events alone (positions before `train_end` of
leave-last-out) and of item properties that are known beforehand (artists, genres). A held-out event moves nothing.

N items in the catalogue · n items that have a vector · d vector width · A artists · E training events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from common.config import option
from common.errors import InputError
from data.event_store import EventStore
from data.schema import ITEM
from data.split import training_events as training_mask

EMBEDDINGS = ("auto", "content", "collaborative")

_START_VECTOR_SEED = 20240217
"""ARPACK iterates from a start vector; a fixed one makes the factorisation a function of the matrix alone."""


@dataclass
class CollaborativeConfig:
    """How vectors are derived where the source ships none.

    The defaults were chosen on MovieLens-100K by ranking validation items (never test items) by their cosine to the
    ten newest training items: recall@10 .176, recall@50 .452 with a standard error of .012 and .016, so small
    differences say nothing. At rank 64, windows of 5 … 100 events reached recall@10 of .136 … .155, and over whole
    histories a shift of 2 gave .116, of 5 .082, of 0.7 .190, which is within the noise of plain PPMI.
    """

    rank: int = option(64, "singular vectors kept of the co-occurrence matrix", minimum=1)
    window: int = option(
        0,
        "longest distance, in events, of a co-occurring pair, which weighs 1/distance; 0 = whole history, each pair"
        " weighing 1/(length - 1), which is quadratic in the length: set a window where histories are long",
        minimum=0,
    )
    shift: float = option(1.0, "PMI is lowered by log(shift) before its negative part is cut; 1 = plain PPMI")
    artist_weight: float = option(0.3, "length of the artist/genre part beside the unit-length history part", minimum=0)
    artist_dimensions: int = option(64, "more artists than this are reduced to so many dimensions", minimum=1)

    def __post_init__(self) -> None:
        """Refuse a shift without a logarithm."""
        if not self.shift > 0:
            raise InputError(f"`shift` is {self.shift}, must be above 0: its logarithm is taken")


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """Vectors of the items that have one; the other items are unknown."""

    kind: str
    """`content` or `collaborative`."""
    items_n: npt.NDArray[np.int64]
    """Dense item indices, ascending."""
    vectors_nd: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrainingEvents:
    """What of a store may be learnt from, user by user in time order."""

    users_E: npt.NDArray[np.int64]
    items_E: npt.NDArray[np.int64]
    num_users: int
    num_items: int

    @property
    def plays_N(self) -> npt.NDArray[np.int64]:
        """Training events of each item."""
        return np.bincount(self.items_E, minlength=self.num_items)


def training_events(store: EventStore) -> TrainingEvents:
    """The events that the store's split gives to training; what is held out is dropped here, once for all."""
    allowed_E = training_mask(store.offsets, store.split())
    users_E = np.repeat(np.arange(store.num_users), np.diff(store.offsets))[allowed_E]
    items_E = store.column(ITEM)[allowed_E].astype(np.int64)
    return TrainingEvents(users_E, items_E, store.num_users, store.num_items)


def item_vectors(store: EventStore, kind: str, events: TrainingEvents, config: CollaborativeConfig) -> ItemVectors:
    """Vectors of the asked kind; `auto` takes content embeddings where the store has them.

    Raises:
        InputError: content asked for and absent, or not a finite number; nothing to derive vectors from.
    """
    assert kind in EMBEDDINGS, kind
    content = None if kind == "collaborative" else store.embeddings()
    if content is not None:
        return _content_vectors(store, *content)
    if kind == "content":
        raise InputError(
            f"{store.path}: the store holds no content embeddings, and embeddings=content asks for them;"
            " use embeddings=collaborative, or prepare the store from a source that ships embeddings"
        )
    return _collaborative_vectors(store, events, config)


def _content_vectors(
    store: EventStore, items_n: npt.NDArray[np.int64], vectors_nd: npt.NDArray[np.float32]
) -> ItemVectors:
    order = np.argsort(items_n, kind="stable")
    items_n, vectors_nd = np.asarray(items_n, np.int64)[order], np.asarray(vectors_nd, np.float32)[order]
    faults = []
    if (twice := np.flatnonzero(items_n[1:] == items_n[:-1])).size:
        faults.append(f"item index {items_n[twice[0]]} has two embeddings, an item has at most one")
    if len(items_n) and items_n[-1] >= store.num_items:
        faults.append(f"an embedding is for item index {items_n[-1]}, but items are numbered below {store.num_items}")
    if (bad := np.flatnonzero(~np.isfinite(vectors_nd).all(axis=1))).size:
        faults.append(
            f"{bad.size} embeddings hold a value that is not finite, the first is that of item index {items_n[bad[0]]};"
            " leave such items without an embedding"
        )
    if faults:
        raise InputError(*(f"{store.path}: {fault}; prepare the store again" for fault in faults))
    if len(items_n) == 0:
        raise InputError(f"{store.path}: the content embeddings hold no item; use embeddings=collaborative")
    return ItemVectors("content", items_n, vectors_nd)


def _collaborative_vectors(store: EventStore, events: TrainingEvents, config: CollaborativeConfig) -> ItemVectors:
    artists_NA = sp.csr_matrix(
        (
            np.ones(len(store.artist_values)),
            np.asarray(store.artist_values, np.int64),
            np.asarray(store.artist_offsets, np.int64),
        ),
        shape=(store.num_items, store.num_artists),
    )
    # An item that was played is known even where its row of the matrix is empty: popular items, which are seen
    # beside everything as often as chance has it, must stay retrievable.
    known_N = (events.plays_N > 0) | (np.diff(artists_NA.indptr) > 0)
    history_Nd = _history_columns(events, config)
    artist_Nd = _artist_columns(artists_NA, config.artist_dimensions) * config.artist_weight
    vectors_Nd = np.concatenate([history_Nd, artist_Nd], axis=1)
    if not vectors_Nd.any():
        raise InputError(
            f"{store.path}: no item vector can be derived: no two items occur together in a training history"
            f" ({len(events.items_E)} training events), and no artist tells items apart; prepare a store with longer"
            " histories or with content embeddings"
        )
    items_n = np.flatnonzero(known_N)
    return ItemVectors("collaborative", items_n, vectors_Nd[items_n].astype(np.float32))


def _history_columns(events: TrainingEvents, config: CollaborativeConfig) -> npt.NDArray[np.float64]:
    """[N, rank] unit-length rows: truncated SVD of shifted PPMI, columns scaled by √singular value.

    Rows are brought to unit length so that codes tell what an item goes with, not how strongly: on MovieLens-100K with
    3 × 64 codes that lowers the share of items that collide from a third to a fifth.
    """
    matrix = shifted_ppmi(co_occurrence(events, config.window), config.shift)
    columns = np.zeros((events.num_items, config.rank))
    # ARPACK's cost and its limit on the rank are those of the rows that hold anything.
    filled = np.flatnonzero(np.diff(matrix.indptr))
    if len(filled):
        left, singular = truncated_svd(matrix[filled][:, filled], config.rank)
        columns[filled, : len(singular)] = left * np.sqrt(singular)
    return _unit_rows(columns)


def co_occurrence(events: TrainingEvents, window: int) -> sp.csr_matrix:
    """Symmetric sparse [N, N]: how often two items stand in one training history, weighted; zero diagonal.

    window > 0 counts pairs at most so many events apart, a pair at distance k weighing 1/k. window = 0 counts all
    pairs of a history of n events, each weighing 1/(n - 1), so that every event gives the same total.
    """
    users_E, items_E, shape = events.users_E, events.items_E, (events.num_items, events.num_items)
    if window == 0:
        lengths = np.bincount(users_E, minlength=events.num_users)
        weights = 1 / np.sqrt(np.maximum(lengths - 1, 1))
        history = sp.csr_matrix((weights[users_E], (users_E, items_E)), shape=(events.num_users, events.num_items))
        counts = (history.T @ history).tocsr()
    else:
        longest = int(np.bincount(users_E, minlength=1).max())
        forward = sp.csr_matrix(shape)
        for distance in range(1, min(window, longest - 1) + 1):
            same = np.flatnonzero(users_E[distance:] == users_E[:-distance])
            pairs = (items_E[same], items_E[same + distance])
            forward = forward + sp.csr_matrix((np.full(len(same), 1 / distance), pairs), shape=shape)
        counts = (forward + forward.T).tocsr()
    counts = counts - sp.diags(counts.diagonal())  # a replayed item says nothing of its neighbours
    counts.eliminate_zeros()
    return counts.tocsr()


def shifted_ppmi(counts: sp.csr_matrix, shift: float) -> sp.csr_matrix:
    """max(0, log(p(i, j) / (p(i) p(j))) - log(shift)) over the stored pairs (Levy and Goldberg 2014)."""
    pairs = counts.tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    ratio = pairs.data * totals.sum() / (totals[pairs.row] * totals[pairs.col])
    values = np.log(ratio) - np.log(shift)
    kept = values > 0
    return sp.csr_matrix((values[kept], (pairs.row[kept], pairs.col[kept])), shape=counts.shape)


def truncated_svd(matrix: sp.csr_matrix, rank: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Left singular vectors [n, r] and values [r], largest first, r = min(rank, smaller side - 1, at least 1).

    The sign of a singular vector is arbitrary: each is turned so that its largest entry by magnitude is positive.
    """
    smaller = min(matrix.shape)
    if smaller == 1:  # ARPACK finds fewer vectors than the smaller side, so it cannot find the only one
        left, singular, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        generator = np.random.default_rng(_START_VECTOR_SEED)
        left, singular, _ = svds(matrix, k=min(rank, smaller - 1), v0=generator.standard_normal(smaller), rng=generator)
        left, singular = left[:, ::-1], singular[::-1]
    peak = left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])]
    return left * np.where(peak < 0, -1.0, 1.0), singular


def _artist_columns(artists_NA: sp.csr_matrix, dimensions: int) -> npt.NDArray[np.float64]:
    """[N, min(A, dimensions)]: multi-hot rows of unit length in which a rare artist weighs more than a common one.

    More artists than `dimensions` are projected by a truncated SVD, which keeps inner products of rows as well as
    so few columns can; a dense column an artist would not fit in memory.
    """
    num_items, num_artists = artists_NA.shape
    if artists_NA.nnz == 0:
        return np.zeros((num_items, 0))
    frequency = np.bincount(artists_NA.indices, minlength=num_artists)
    rarity = np.log((1 + num_items) / (1 + frequency))
    weighted = artists_NA @ sp.diags(rarity)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    unit = (sp.diags(1 / np.where(norms > 0, norms, 1)) @ weighted).tocsr()
    if num_artists <= dimensions:
        return np.asarray(unit.toarray())
    left, singular = truncated_svd(unit, dimensions)
    return left * singular


def _unit_rows(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1)
