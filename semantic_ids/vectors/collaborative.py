"""Item vectors from what training histories tell of the items, beside their artists.

A vector is two parts side by side: the history part, a truncated SVD of the shifted PPMI of co-occurrence, brought to
unit length; and the artist part, a multi-hot row of unit length times `artist_weight`.

N items in the catalogue · n items that have a vector · D vector width · A artists.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from common.config import option
from common.errors import InputError
from common.progress import Progress
from data.event_store import EventStore
from data.training_events import TrainingEvents
from semantic_ids.vectors.base import ItemVectors
from semantic_ids.vectors.co_occurrence import co_occurrence
from semantic_ids.vectors.factors import shifted_ppmi, truncated_svd, unit_rows

LARGE_PAIRS = 2**26
"""Windows over more pairs than this are pruned unless told otherwise; 46 million took 2 GB in all."""
LARGE_MIN_PLAYS = 5
LARGE_MAX_NEIGHBOURS = 64
"""What pruning is where it is automatic: at 46 million events and a window of 5 the matrix then fits in 1 GB."""


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
        " weighing 1/(length - 1), which is quadratic in the length and refused where histories are too long for it:"
        " set a window there, 5 or more",
        minimum=0,
    )
    shift: float = option(1.0, "PMI is lowered by log(shift) before its negative part is cut; 1 = plain PPMI")
    min_plays: int | None = option(
        None,
        "items played less often in training do not count as neighbours of others; their own neighbours are counted"
        f" all the same, so they keep a vector; not given = 0, or {LARGE_MIN_PLAYS} where window × training events"
        f" exceeds {LARGE_PAIRS // 2:,}",
        minimum=0,
    )
    max_neighbours: int | None = option(
        None,
        "neighbours kept of an item, the heaviest, of equal weight the lower index; 0 = all; not given = 0, or"
        f" {LARGE_MAX_NEIGHBOURS} where window × training events exceeds {LARGE_PAIRS // 2:,}",
        minimum=0,
    )
    artist_weight: float = option(0.3, "length of the artist/genre part beside the unit-length history part", minimum=0)
    artist_dimensions: int = option(64, "more artists than this are reduced to so many dimensions", minimum=1)

    def __post_init__(self) -> None:
        """Refuse a shift without a logarithm."""
        if not self.shift > 0:
            raise InputError(f"`shift` is {self.shift}, must be above 0: its logarithm is taken")

    def resolved(self, events: TrainingEvents) -> CollaborativeConfig:
        """With the automatic values filled in; a function of the number of training events."""
        large = 2 * self.window * events.num_events > LARGE_PAIRS
        return dataclasses.replace(
            self,
            min_plays=self.min_plays if self.min_plays is not None else LARGE_MIN_PLAYS * large,
            max_neighbours=self.max_neighbours if self.max_neighbours is not None else LARGE_MAX_NEIGHBOURS * large,
        )


class CollaborativeVectors(ItemVectors):
    """Vectors of items that were played in training or have an artist, in memory.

    An item that was played is known even where its row of the matrix is empty: popular items, which are seen beside
    everything as often as chance has it, must stay retrievable. Without an artist such a vector is all zero.
    """

    kind = "collaborative"

    def __init__(self, store: EventStore, events: TrainingEvents, config: CollaborativeConfig) -> None:
        """Count and factorise.

        Args:
            events: the training events of `store`, and no others.

        Raises:
            InputError: whole histories too long to count, or nothing to derive a vector from.
        """
        self.config = config.resolved(events)
        artists_NA = _artists(store)
        artist_N, played_N = np.diff(artists_NA.indptr) > 0, events.plays_N > 0
        self.items_n = np.flatnonzero(played_N | artist_N)
        history_nd = _history_columns(events, self.config, self.items_n)
        artist_nd = artist_columns(artists_NA, self.config.artist_dimensions)[self.items_n] * self.config.artist_weight
        self.played_n: npt.NDArray[np.bool_] = played_N[self.items_n]
        self.has_history_n: npt.NDArray[np.bool_] = np.asarray(history_nd.any(axis=1))
        """Items that were played beside another one more often than chance has it."""
        self.has_artist_n: npt.NDArray[np.bool_] = artist_N[self.items_n]
        self.history_width = history_nd.shape[1]
        """The first columns are the history part, the others the artist part."""
        self._vectors_nD = np.concatenate([history_nd, artist_nd], axis=1, dtype=np.float32, casting="same_kind")
        if not self._vectors_nD.any():
            raise InputError(
                f"{store.path}: no item vector can be derived: no two items occur together in a training history"
                f" ({events.num_events} training events), and no artist tells items apart; prepare a store with longer"
                " histories or with content embeddings"
            )

    @property
    def width(self) -> int:
        """D: the rank, and the artist dimensions."""
        return int(self._vectors_nD.shape[1])

    def rows(self, places_m: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """See `ItemVectors.rows`."""
        return self._vectors_nD[places_m]

    def settings(self) -> dict[str, Any]:
        """The configuration, automatic values filled in."""
        return {"collaborative": dataclasses.asdict(self.config)}

    def notes(self) -> tuple[str, ...]:
        """Which neighbours were pruned, and how many items have a vector of zeros."""
        notes = []
        if self.config.min_plays or self.config.max_neighbours:
            kept = f"the {self.config.max_neighbours} heaviest" if self.config.max_neighbours else "all"
            notes.append(
                f"of an item's neighbours, {kept} of those played at least {self.config.min_plays} times in training"
                " were kept"
            )
        if zeros := int((~(self.has_history_n | self._vectors_nD.any(axis=1))).sum()):
            notes.append(
                f"{zeros:,} items that were played have no neighbour and no artist: their vectors are all zero"
            )
        return tuple(notes)


def _history_columns(
    events: TrainingEvents, config: CollaborativeConfig, items_n: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """[n, rank] unit-length rows: truncated SVD of shifted PPMI, columns scaled by √singular value.

    Rows are brought to unit length so that codes tell what an item goes with, not how strongly: on MovieLens-100K with
    3 × 64 codes that lowers the share of items that collide from a third to a fifth.
    """
    assert config.min_plays is not None and config.max_neighbours is not None  # noqa: PT018
    counts = co_occurrence(
        events,
        config.window,
        neighbours_N=events.plays_N >= config.min_plays,
        max_neighbours=config.max_neighbours,
    )
    matrix = shifted_ppmi(counts, config.shift)
    del counts
    columns = np.zeros((len(items_n), config.rank), np.float32)
    # ARPACK's cost and its limit on the rank are those of the rows and columns that hold anything.
    filled = np.flatnonzero(np.diff(matrix.indptr))
    neighbours = np.flatnonzero(np.bincount(matrix.indices, minlength=events.num_items))
    if len(filled):
        matrix = matrix[filled][:, neighbours]
        with Progress(f"factorise {len(filled):,} items", None, "pairs") as progress:
            left, singular = truncated_svd(matrix, config.rank)
            progress.advance(matrix.nnz)
        columns[np.searchsorted(items_n, filled), : len(singular)] = unit_rows(left * np.sqrt(singular))
    return columns


def _artists(store: EventStore) -> sp.csr_matrix:
    """Multi-hot [N, A]."""
    values, offsets = np.asarray(store.artist_values, np.int64), np.asarray(store.artist_offsets, np.int64)
    return sp.csr_matrix((np.ones(len(values)), values, offsets), shape=(store.num_items, store.num_artists))


def artist_columns(artists_NA: sp.csr_matrix, dimensions: int) -> npt.NDArray[np.float64]:
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
