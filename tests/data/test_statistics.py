from __future__ import annotations

import itertools
import statistics as obvious
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data import schema
from data.statistics import describe_lengths, gather, gini, log_edges
from data.statistics_blocks import DAY, HOUR, MOST_BINS, SESSION_GAP, CountTimes
from data.statistics_results import MOST_GROUPS, PADDED_TO, Bins, Coverage, Part, Statistics
from tests.data.written_log import Event, WrittenLog, written_logs


def figures_of(log: WrittenLog, block_events: int = 7) -> Statistics:
    with tempfile.TemporaryDirectory() as folder:
        return gather(log.store(Path(folder) / "store"), block_events)


def coverage(items: Sequence[int], events: Sequence[Event]) -> Coverage:
    return Coverage(len(items), sum(event.item in items for event in events))


def in_bins(values: Sequence[int], bins: Bins) -> list[int]:
    return [sum(low <= value < high for value in values) for low, high in itertools.pairwise(bins.edges)]


@given(written_logs(), st.sampled_from([1, 4, 10_000]))
@settings(max_examples=40, deadline=None)
def test_everything_is_as_counted_one_by_one(log: WrittenLog, block_events: int) -> None:
    figures = figures_of(log, block_events)
    events = [event for user in log.users for event in user]
    num_items = len(log.artists_N)

    # Over time.
    timeline = figures.timeline
    last = max(event.timestamp for event in events)
    bins = range(timeline.start, last + 1, timeline.width)
    assert timeline.events == [sum(start <= e.timestamp < start + timeline.width for e in events) for start in bins]
    assert timeline.users == [
        sum(any(start <= e.timestamp < start + timeline.width for e in user) for user in log.users) for start in bins
    ]

    # Gaps.
    gaps = [b.timestamp - a.timestamp for user in log.users for a, b in itertools.pairwise(user)]
    assert figures.gaps.ties == gaps.count(0)
    assert figures.gaps.bins.counts == in_bins(gaps, figures.gaps.bins)
    assert figures.gaps.total == len(gaps)
    assert figures.gaps.sessions == len(log.users) + sum(gap > 1800 for gap in gaps)
    assert figures.gaps.events_per_session == len(events) / figures.gaps.sessions

    # Popularity.
    played = Counter(event.item for event in events)
    ranked = [count for _, count in played.most_common()]
    popularity = figures.popularity
    assert popularity.ranks == list(range(1, len(ranked) + 1))
    assert popularity.events_at_rank == ranked
    assert popularity.items_without_event == num_items - len(played)
    assert popularity.items_with_one_event == ranked.count(1)
    assert popularity.gini == pytest.approx(slow_gini([played[item] for item in range(num_items)]))
    by_artist = Counter(artist for event in events for artist in log.artists_N[event.item])
    artists = max((artist for artists in log.artists_N for artist in artists), default=-1) + 1
    if by_artist:
        assert popularity.artist_gini == pytest.approx(slow_gini([by_artist[artist] for artist in range(artists)]))
    else:
        assert popularity.artist_gini is None
    assert figures.repeats == sum(len(user) - len({event.item for event in user}) for user in log.users)

    # What is known.
    every = range(num_items)
    embedded, albums = log.embedded, log.albums_N
    if embedded is None:
        assert figures.without_embedding is None
    else:
        assert figures.without_embedding == coverage([item for item in every if item not in embedded], events)
    if albums is None:
        assert figures.without_album is None
    else:
        assert figures.without_album == coverage([item for item in every if not albums[item]], events)
    assert figures.by_artists == [
        coverage([item for item in every if min(len(log.artists_N[item]), MOST_GROUPS) == count], events)
        for count in range(MOST_GROUPS + 1)
    ]
    assert figures.plays.missing == {
        name: sum(getattr(event, name) is None for event in events) for name in log.optional_columns
    }
    has_organic, has_ratio = schema.ORGANIC in log.optional_columns, schema.PLAYED_RATIO in log.optional_columns
    assert figures.plays.organic == (sum(event.organic == 1 for event in events) if has_organic else None)
    if has_ratio:
        ratios = [min(event.played_ratio, 205) for event in events if event.played_ratio is not None]
        assert figures.plays.played == Bins(list(range(0, 211, 10)), in_bins(ratios, Bins(list(range(0, 211, 10)), [])))
    else:
        assert figures.plays.played is None

    # Leave-last-out is the split where none is asked for.
    long = [user for user in log.users if len(user) >= 3]
    assert figures.split == {
        "training": Part(len(log.users), len(events) - 2 * len(long)),
        "validation": Part(len(long), len(long)),
        "test": Part(len(long), len(long)),
        "neither": Part(0, 0),
    }
    assert figures.lengths == describe_lengths(np.array([len(user) for user in log.users]))


def slow_gini(counts: Sequence[int]) -> float:
    """Half of the mean difference of two counts, relative to their mean."""
    differences = [abs(a - b) for a in counts for b in counts]
    return obvious.mean(differences) / 2 / obvious.mean(counts)


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_lengths(lengths: list[int]) -> None:
    figures = describe_lengths(np.array(lengths))
    assert (figures.shortest, figures.longest) == (min(lengths), max(lengths))
    assert figures.mean == pytest.approx(obvious.mean(lengths))
    assert figures.median == figures.quantiles[2] == pytest.approx(obvious.median(lengths))
    assert figures.quantiles == sorted(figures.quantiles)
    assert figures.bins.counts == in_bins(lengths, figures.bins)
    assert sum(figures.bins.counts) == len(lengths)
    assert [row.length for row in figures.padding] == list(PADDED_TO)
    for row in figures.padding:
        padded = [[1] * min(n, row.length) + [0] * max(row.length - n, 0) for n in lengths]
        assert row.sparsity == pytest.approx(1 - obvious.mean(map(obvious.mean, padded)), abs=1e-9)
        squares = [sum(line) ** 2 / row.length**2 for line in padded]
        assert row.sparsity_squared == pytest.approx(1 - obvious.mean(squares), abs=1e-9)


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_edges_ascend_and_hold_the_range(low: int, above: int) -> None:
    edges = log_edges(low, low + above)
    assert edges[0] == low
    assert edges[-1] == low + above + 1
    assert all(a < b for a, b in itertools.pairwise(edges))
    assert len(edges) <= 21


def test_gini_by_hand() -> None:
    assert gini(np.array([5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("last", "width", "bins"),
    [(0, HOUR, 1), (4 * DAY - 1, HOUR, 96), (4 * DAY, DAY, 5), (300 * DAY, DAY, 301), (400 * DAY, 2 * DAY, 201)],
)
def test_bins_of_a_timeline_follow_its_span(last: int, width: int, bins: int) -> None:
    times = CountTimes(0, last)
    assert (times.width, len(times.events)) == (width, bins)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_timeline_has_room_for_its_ends_and_never_many_bins(one: int, other: int) -> None:
    first, last = min(one, other), max(one, other)
    times = CountTimes(first, last)
    assert times.start <= first
    assert (last - times.start) // times.width < len(times.events) <= MOST_BINS + 1
    assert times.start % (HOUR if times.width == HOUR else DAY) == 0


def test_half_an_hour_is_within_a_session() -> None:
    user = [Event(0, 0), Event(0, SESSION_GAP), Event(0, 2 * SESSION_GAP + 1)]
    figures = figures_of(WrittenLog([user], [[]]))
    assert figures.gaps.sessions == 2
    assert figures.repeats == 2


def test_the_popular_part_of_a_catalogue() -> None:
    # 100 items: one with 101 events, nine with 11, the others with one.
    items = [0] * 101 + [item for item in range(1, 10) for _ in range(11)] + list(range(10, 100))
    popularity = figures_of(WrittenLog([[Event(item, 0) for item in items]], [[]] * 100)).popularity
    assert popularity.top_1_percent == pytest.approx(101 / 290)
    assert popularity.top_10_percent == pytest.approx(200 / 290)
    assert popularity.ranks[0] == 1
    assert popularity.ranks[-1] == 100


def test_a_later_block_is_counted_as_the_first() -> None:
    users = [[Event(item % 4, 40 * item, 0, None, item % 2, item) for item in range(user, 9)] for user in range(6)]
    log = WrittenLog(users, [[0], [0, 1], [], [2]], embedded=[1, 2])
    assert figures_of(log, 1) == figures_of(log, 13) == figures_of(log, 10_000)


def test_times_near_the_end_of_their_type() -> None:
    figures = figures_of(WrittenLog([[Event(0, 0), Event(0, 2**32 - 1)], [Event(0, 5)]], [[]]))
    assert figures.gaps.bins.edges[-1] == 2**32
    assert sum(figures.gaps.bins.counts) == 1
    assert sum(figures.timeline.events) == 3


def test_a_store_without_events_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = WrittenLog([[Event(0, 0)]], [[]]).store(tmp_path / "store")
    monkeypatch.setitem(store.manifest.counts, "events", 0)
    with pytest.raises(InputError, match="holds no events; there is nothing to describe"):
        gather(store)
