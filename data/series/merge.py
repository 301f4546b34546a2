"""Which entries of the series enter a window of events, and where (HSTU paper, §2.1).

A window is some events of one user in order of time; in ranking the last is the candidate. Into it come

    carried in   of each series the newest entry not later than the window's first event: all stand before that event
    changes      every later entry, up to the time of the window's last event, each before the first event whose time
                 is not before the entry's own

A preferred artist known from second t on is made of events before t alone, so that no event has one in front of it that
knows the event itself or later ones. Of more entries than `limit` the first are kept: which of them stay must not
depend on later ones, or a missing entry would tell a candidate in the middle of a window that changes follow.

Shapes: W windows · n events of the windows, one window after another · S entries of the store · s entries that enter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data import schema
from data.leakage import user_blocks
from data.ranges import partition_points, positions_of
from data.series.columns import SeriesColumns

_BLOCK_ENTRIES = 2**21


@dataclass(frozen=True)
class MergedSeries:
    """Entries in the order in which they stand in their windows; all int64 [s].

    Attributes:
        value: number of the value, below `SeriesColumns.num_values`.
        time: the second from which on it holds: of what was carried in, before the window begins.
        window: which window, ascending.
        before: the event, by its place in the window, in front of which the entry stands. Several entries may stand
            before one event: they come by time, then by series.
    """

    value: np.ndarray
    time: np.ndarray
    window: np.ndarray
    before: np.ndarray

    def __len__(self) -> int:
        """S."""
        return len(self.value)


class SeriesMerger:
    """Merges the series of a store into windows of events; keeps a byte an entry besides the mapped columns."""

    def __init__(self, series: SeriesColumns, limit: int) -> None:
        """Count, once, how many series each entry finds known.

        Args:
            limit: the most entries that a window is given, at least 1.
        """
        assert limit >= 1
        assert series.num_series <= schema.MAX_SERIES
        self._series, self._limit = series, limit
        self._known_S = _known(series)

    def counts(
        self, user_W: np.ndarray, first_W: np.ndarray, last_W: np.ndarray, until_W: np.ndarray | None = None
    ) -> np.ndarray:
        """How many entries `merge` gives each window, int64 [W]: two binary searches a window.

        Args:
            user_W: user index.
            first_W, last_W: seconds of the window's first and last event, first ≤ last.
            until_W: see `merge`.
        """
        _, middle_W, end_W, carried_W = self._bounds(user_W, first_W, last_W, until_W)
        counts: np.ndarray = np.minimum(carried_W + end_W - middle_W, self._limit)
        return counts

    def merge(
        self, user_W: np.ndarray, times_n: np.ndarray, offsets: np.ndarray, until_W: np.ndarray | None = None
    ) -> MergedSeries:
        """The entries that enter each window.

        Args:
            user_W: user index.
            times_n: seconds of the windows' events, ascending within a window. Any events of the user will do, also
                some of them left out, and one that has not happened yet.
            offsets: int64 [W + 1] into the events; no window is empty.
            until_W: no entry later than this second enters, for a request that must not see what lies between its
                history and its candidate. None: up to the last event.
        """
        times_n = times_n.astype(np.int64, copy=False)
        assert (np.diff(offsets) > 0).all(), "a window has at least one event"
        low_W, middle_W, end_W, _ = self._bounds(user_W, times_n[offsets[:-1]], times_n[offsets[1:] - 1], until_W)
        window_s = np.repeat(np.arange(len(user_W)), end_W - low_W)
        place_s = positions_of(low_W, end_W - low_W)
        value_s = self._series.values[place_s].astype(np.int64)
        # Of what lies before the first event, only what nothing replaces before it.
        early_s = place_s < middle_W[window_s]
        newer_early = _newer_of_series(window_s[early_s], self._series.series_V[value_s[early_s]])
        enters_s = ~early_s
        enters_s[early_s] = newer_early == 0
        chosen = np.flatnonzero(enters_s)
        chosen = chosen[_place_in_window(window_s[chosen]) < self._limit]
        time_s = self._series.timestamps[place_s[chosen]].astype(np.int64)
        window_s = window_s[chosen]
        starts = offsets[:-1][window_s].astype(np.int64)
        ends = offsets[1:][window_s].astype(np.int64)
        before_s = partition_points(starts, ends, lambda places, rows: times_n[places] < time_s[rows]) - starts
        return MergedSeries(value_s[chosen], time_s, window_s, before_s)

    def _bounds(
        self, user_W: np.ndarray, first_W: np.ndarray, last_W: np.ndarray, until_W: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each window: the user's first entry, the first after its first event, the first too late, and how many
        series have an entry before the second."""
        times = self._series.timestamps
        last_W = last_W.astype(np.int64)
        if until_W is not None:
            last_W = np.minimum(last_W, until_W)
        first_W = np.minimum(first_W.astype(np.int64), last_W)
        low_W = self._series.offsets[user_W].astype(np.int64)
        high_W = self._series.offsets[user_W + 1].astype(np.int64)
        middle_W = partition_points(low_W, high_W, lambda places, rows: times[places] <= first_W[rows])
        end_W = partition_points(middle_W, high_W, lambda places, rows: times[places] <= last_W[rows])
        carried_W = np.zeros(len(low_W), dtype=np.int64)
        some = np.flatnonzero(middle_W > low_W)
        carried_W[some] = self._known_S[middle_W[some] - 1]
        return low_W, middle_W, end_W, carried_W


def _known(series: SeriesColumns) -> np.ndarray:
    """Of how many series the user has an entry, up to and with each, uint8 [S]; a block of users at a time."""
    known_S = np.zeros(len(series.timestamps), dtype=np.uint8)
    for first, last in user_blocks(series.offsets, _BLOCK_ENTRIES):
        begin, end = int(series.offsets[first]), int(series.offsets[last])
        if begin == end:
            continue
        lengths = np.diff(series.offsets[first : last + 1])
        user_s = np.repeat(np.arange(last - first), lengths)
        keys_s = user_s * series.num_series + series.series_V[series.values[begin:end]]
        new_s = np.zeros(end - begin, dtype=np.int64)
        new_s[np.unique(keys_s, return_index=True)[1]] = 1
        total_s = np.cumsum(new_s)
        starts = (series.offsets[first:last] - begin)[lengths > 0]
        earlier = np.repeat(total_s[starts] - 1, lengths[lengths > 0])  # a user's first entry is always new
        known_S[begin:end] = total_s - earlier
    return known_S


def _newer_of_series(window_s: np.ndarray, series_s: np.ndarray) -> np.ndarray:
    """How many later entries of the same series each window has, int64 [s]; entries stand in order of time."""
    order = np.lexsort((series_s, window_s))  # a stable sort
    window_s, series_s = window_s[order], series_s[order]
    ends = np.flatnonzero((window_s[1:] != window_s[:-1]) | (series_s[1:] != series_s[:-1]))
    ends = np.append(ends, len(order) - 1) if len(order) else ends
    lengths = np.diff(ends, prepend=-1)
    newer_s = np.empty(len(order), dtype=np.int64)
    newer_s[order] = np.repeat(ends, lengths) - np.arange(len(order))
    return newer_s


def _place_in_window(window_s: np.ndarray) -> np.ndarray:
    """How many entries stand before each in its window, int64 [s]."""
    lengths = np.bincount(window_s) if len(window_s) else np.zeros(0, dtype=np.int64)
    places_s: np.ndarray = np.arange(len(window_s)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return places_s
