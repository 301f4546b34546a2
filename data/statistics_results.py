"""The figures of an event store, as plain values: what data/statistics.py counts, and the tables and the page show."""

from __future__ import annotations

from dataclasses import dataclass

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
PADDED_TO = (512, 1024, 2048, 4096, 8192)
MOST_GROUPS = 4
"""Items with this many artists or more are counted together."""


@dataclass(frozen=True)
class Bins:
    """How many fall where: the i-th bin holds what is in edges[i] ≤ value < edges[i + 1]."""

    edges: list[int]
    counts: list[int]


@dataclass(frozen=True)
class Padding:
    """What is left unused where every history is cut or padded to `length` events (HSTU, arXiv 2402.17152, Table 14).

    Attributes:
        sparsity: 1 − mean(min(n, length)) / length, of work that grows with the length.
        sparsity_squared: 1 − mean(min(n, length)²) / length², of attention.
    """

    length: int
    sparsity: float
    sparsity_squared: float


@dataclass(frozen=True)
class Lengths:
    """Events a user.

    Attributes:
        quantiles: those of `QUANTILES`, in that order, between neighbours where they fall there.
        bins: users by length, in bins of about equal width on a logarithmic axis.
    """

    shortest: int
    longest: int
    mean: float
    quantiles: list[float]
    bins: Bins
    padding: list[Padding]

    @property
    def median(self) -> float:
        """Half of the users have no more."""
        return self.quantiles[QUANTILES.index(0.5)]


@dataclass(frozen=True)
class Timeline:
    """Events over time: bin i starts `start + i * width` seconds after the source's origin.

    Attributes:
        events: in each bin.
        users: with an event in the bin.
    """

    start: int
    width: int
    events: list[int]
    users: list[int]


@dataclass(frozen=True)
class Gaps:
    """Between successive events of a user.

    Attributes:
        ties: gaps of 0 seconds.
        bins: the other gaps, in seconds; each bin is twice as wide as the one before it.
        sessions: runs of events without a gap of more than half an hour.
    """

    ties: int
    bins: Bins
    sessions: int
    events_per_session: float

    @property
    def total(self) -> int:
        """All gaps."""
        return self.ties + sum(self.bins.counts)


@dataclass(frozen=True)
class Popularity:
    """How unevenly events fall on the items of the catalogue.

    Attributes:
        ranks: log-spaced places in the order of popularity, from 1.
        events_at_rank: events of the item at that place, the catalogue's unheard items left out.
        top_1_percent, top_10_percent: share of events on that part of the catalogue, at least one item.
        gini: 0 where all items have equally many events, towards 1 where one has all; unheard ones count.
        artist_gini: the same over artists, None where there are none; an event counts for each artist of its item.
        items_without_event, items_with_one_event: of the catalogue.
    """

    ranks: list[int]
    events_at_rank: list[int]
    top_1_percent: float
    top_10_percent: float
    gini: float
    artist_gini: float | None
    items_without_event: int
    items_with_one_event: int


@dataclass(frozen=True)
class Coverage:
    """Items, and the events on them, of some kind."""

    items: int
    events: int


@dataclass(frozen=True)
class Plays:
    """What the optional columns say.

    Attributes:
        missing: events without a value, of each optional column that the store has.
        organic: events that the user found, None where the store does not say.
        played: events by percent played, in tens up to 200 and all above together; None as for `organic`.
    """

    missing: dict[str, int]
    organic: int | None
    played: Bins | None


@dataclass(frozen=True)
class Part:
    """A part of the split: users who have events in it, and those events."""

    users: int
    events: int


@dataclass(frozen=True)
class Statistics:
    """Everything that is counted of a store.

    Attributes:
        split: training, validation, test, and the events that are in none of them.
        without_embedding: items that lack a content embedding, None where the store has none at all.
        without_album: likewise of albums.
        by_artists: items with 0, 1, … artists; the last are those with `MOST_GROUPS` or more.
        repeats: events whose item the same user had before.
    """

    split: dict[str, Part]
    lengths: Lengths
    timeline: Timeline
    gaps: Gaps
    popularity: Popularity
    without_embedding: Coverage | None
    without_album: Coverage | None
    by_artists: list[Coverage]
    plays: Plays
    repeats: int
