"""What is in an event store, in figures: histories, time, gaps, popularity, what is missing, repeats.

Everything is counted over all events, nothing over a sample. `gather` passes once over the flat columns in blocks of
whole users (data/statistics_blocks.py), so memory holds one block and a few counts an item, however long the log is.

Shapes: U users · E events · N items · A artists.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.progress import Progress
from data import schema
from data.event_store import EventStore
from data.leakage import user_blocks
from data.statistics_blocks import (
    BLOCK_EVENTS,
    Block,
    CountGaps,
    CountItems,
    CountPlays,
    CountRepeats,
    CountTimes,
)
from data.statistics_results import (
    MOST_GROUPS,
    PADDED_TO,
    QUANTILES,
    Bins,
    Coverage,
    Gaps,
    Lengths,
    Padding,
    Part,
    Plays,
    Popularity,
    Statistics,
    Timeline,
)

Ints = npt.NDArray[np.int64]


def gather(store: EventStore, block_events: int = BLOCK_EVENTS) -> Statistics:
    """Count all there is to count, in one pass.

    Args:
        block_events: how many events are in memory at a time; a longer history is a block by itself.

    Raises:
        InputError: the store has no events, or was damaged since it was opened.
    """
    if store.num_events == 0:
        raise InputError(f"{store.path}: holds no events; there is nothing to describe")
    times = CountTimes(*store.manifest.time_range)
    gaps, items, plays, repeats = CountGaps(), CountItems(store.num_items), CountPlays(), CountRepeats(store.num_items)
    names = (schema.ITEM, schema.TIMESTAMP, *filter(store.has_column, schema.OPTIONAL_COLUMNS))
    columns = {name: store.column(name) for name in names}
    with Progress("describe", store.num_events, "events") as progress:
        for first, last in user_blocks(store.offsets, block_events):
            block = Block.cut(store.offsets, columns, first, last)
            for counter in (times, gaps, items, plays, repeats):
                counter.add(block)
            progress.advance(block.size)
    events_N = items.events_N
    return Statistics(
        split=_describe_split(store),
        lengths=describe_lengths(np.diff(store.offsets)),
        timeline=Timeline(times.start, times.width, times.events.tolist(), times.users.tolist()),
        gaps=_describe_gaps(gaps, store.num_events),
        popularity=_describe_popularity(store, events_N),
        without_embedding=_without_embedding(store, events_N),
        without_album=_without_album(store, events_N),
        by_artists=_by_artists(np.diff(store.artist_offsets), events_N),
        plays=_describe_plays(plays),
        repeats=repeats.repeats,
    )


# ── of histories ─────────────────────────────────────────────────────────────────────────────────────────


def describe_lengths(lengths_U: Ints) -> Lengths:
    """What history lengths (at least one) say by themselves."""
    edges = log_edges(int(lengths_U.min()), int(lengths_U.max()))
    counts, _ = np.histogram(lengths_U, bins=edges)
    return Lengths(
        shortest=edges[0],
        longest=edges[-1] - 1,
        mean=float(lengths_U.mean()),
        quantiles=np.quantile(lengths_U, QUANTILES).tolist(),
        bins=Bins(edges, counts.tolist()),
        padding=[_padding(lengths_U, length) for length in PADDED_TO],
    )


def log_edges(low: int, high: int, about: int = 20) -> list[int]:
    """Integer edges from `low` to `high + 1`, about evenly spaced on a logarithmic axis; each bin holds an integer."""
    spaced = np.rint(np.geomspace(max(low, 1), high + 1, about + 1)).astype(np.int64)
    spaced[0] = low
    return [int(edge) for edge in np.unique(spaced)]


def _padding(lengths_U: Ints, length: int) -> Padding:
    filled_U = np.minimum(lengths_U, length) / length
    return Padding(length, float(1 - filled_U.mean()), float(1 - np.square(filled_U).mean()))


def _describe_split(store: EventStore) -> dict[str, Part]:
    split = store.split()
    asked = {
        "validation": split.validation.stop_U - split.validation.start_U,
        "test": split.test.stop_U - split.test.start_U,
    }
    parts = {
        name: Part(int(np.count_nonzero(events_U)), int(events_U.sum()))
        for name, events_U in {"training": split.train_end_U, **asked}.items()
    }
    neither_U = np.diff(store.offsets) - split.train_end_U - sum(asked.values())
    return {**parts, "neither": Part(int(np.count_nonzero(neither_U)), int(neither_U.sum()))}


def _describe_gaps(counted: CountGaps, num_events: int) -> Gaps:
    last = int(np.flatnonzero(counted.doubling)[-1]) if counted.doubling.any() else 0
    bins = Bins([2**power for power in range(last + 1)], counted.doubling[1 : last + 1].tolist())
    return Gaps(int(counted.doubling[0]), bins, counted.sessions, num_events / counted.sessions)


# ── of the catalogue ─────────────────────────────────────────────────────────────────────────────────────


def _describe_popularity(store: EventStore, events_N: Ints) -> Popularity:
    falling_N = np.sort(events_N)[::-1]
    heard = int(np.count_nonzero(falling_N))
    ranks = np.unique(np.rint(np.geomspace(1, heard, 60)).astype(np.int64))
    artists_N = np.diff(store.artist_offsets)
    # Sums of whole numbers: exact in a float64 up to 2**53 events.
    events_A = np.bincount(store.artist_values, weights=np.repeat(events_N, artists_N), minlength=store.num_artists)
    return Popularity(
        ranks=ranks.tolist(),
        events_at_rank=falling_N[ranks - 1].tolist(),
        top_1_percent=_share_of_top(falling_N, 0.01),
        top_10_percent=_share_of_top(falling_N, 0.1),
        gini=gini(events_N),
        artist_gini=gini(events_A.astype(np.int64)) if events_A.any() else None,
        items_without_event=len(events_N) - heard,
        items_with_one_event=int(np.count_nonzero(events_N == 1)),
    )


def _share_of_top(falling_N: Ints, part: float) -> float:
    return float(falling_N[: max(round(part * len(falling_N)), 1)].sum() / falling_N.sum())


def gini(counts: Ints) -> float:
    """Gini coefficient of counts that are not all 0."""
    n, total = len(counts), int(counts.sum())
    rank = np.arange(1, n + 1, dtype=np.float64)
    return float(((2 * rank - n - 1) * np.sort(counts)).sum() / (n * total))


def _without_embedding(store: EventStore, events_N: Ints) -> Coverage | None:
    embeddings = store.embeddings()
    if embeddings is None:
        return None
    lacking_N = np.ones(len(events_N), dtype=bool)
    lacking_N[embeddings[0]] = False
    return _coverage(lacking_N, events_N)


def _without_album(store: EventStore, events_N: Ints) -> Coverage | None:
    if not store.manifest.albums:
        return None
    return _coverage(np.diff(store.album_offsets) == 0, events_N)


def _by_artists(artists_N: Ints, events_N: Ints) -> list[Coverage]:
    capped_N = np.minimum(artists_N, MOST_GROUPS)
    return [_coverage(capped_N == count, events_N) for count in range(MOST_GROUPS + 1)]


def _coverage(mask_N: npt.NDArray[np.bool_], events_N: Ints) -> Coverage:
    return Coverage(int(np.count_nonzero(mask_N)), int(events_N[mask_N].sum()))


def _describe_plays(counted: CountPlays) -> Plays:
    tens = counted.played_tens
    played = Bins(list(range(0, 10 * len(tens) + 1, 10)), tens.tolist()) if tens is not None else None
    return Plays(counted.missing, counted.organic, played)
