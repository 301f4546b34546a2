"""Slow series as tokens of a ranking model's history: which rows they are, and which entries a window is given.

A token of a value has the value's row of the table `event_type`, which lies behind those of the actions; one that is an
artist also has the rows of that artist, so that a preferred artist means the artist of the tracks.

Which entries. Those of `data.series.merge`, for a window as it is before thinning: Stochastic Length thins events, of
which there are many, and leaves the few states between them. What enters, and how much room it takes, then follows
from a window's first and last second, without knowing which inputs are left.

Not every window goes as far as its last target. A request must not see what lies between its history and its candidate,
which a gap of the split may hide from it: nothing enters there that is later than the newest input. Nor does it with
form=interactions, where nothing would see it. (Where Stochastic Length drops the newest input, what entered between the
last input left and that one is seen by nothing there either: it takes room, and does no harm.)

Clocks. A token has the second from which on its value holds, also where that is years before the window: a state's age
is worth knowing. Times of keys ascend with that, which the fast path of attention relies on: entries come by time, and
none behind an event that is later. Alone what is older than OLDEST is brought forward to it, since attention counts in
31 bits from a user's oldest key on, and would confuse the times of events far behind that.

W windows · s entries that enter · V values · n rows of the table.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from data.batches import EventColumns
from data.examples import Tokens
from data.ranking.config import INTERACTIONS
from data.ranking.rows import NONE
from data.sequences import Windows
from data.series.columns import SeriesColumns
from data.series.merge import MergedSeries, SeriesMerger
from data.series.values import NO_ARTIST

OLDEST = 2**30
"""Seconds before a window's first event, 34 years, beyond which it makes no difference how old a value is."""


@dataclass(frozen=True)
class SeriesRows:
    """Values of series as rows of the table `event_type`.

    Attributes:
        first: row of value 0, which is how many actions there are.
        series_V: int64, the series that each value is of.
        artists_V: int64, the dense artist that a value is; NO_ARTIST where it is none.
    """

    first: int
    series_V: np.ndarray
    artists_V: np.ndarray

    @classmethod
    def of(cls, series: SeriesColumns, first: int) -> SeriesRows:
        """Of a store's."""
        return cls(first, series.series_V, series.artists_V)

    @functools.cached_property
    def num_series(self) -> int:
        """How many series the values are of."""
        return int(self.series_V.max(initial=-1)) + 1

    def artists_of(self, rows_n: np.ndarray) -> np.ndarray:
        """The artist that a row is, int64 [n]; NONE of actions, and of values that are none."""
        artists_n = np.full(len(rows_n), NONE, dtype=np.int64)
        values = np.flatnonzero(rows_n >= self.first)
        found = self.artists_V[rows_n[values] - self.first]
        artists_n[values] = np.where(found == NO_ARTIST, NONE, found)
        return artists_n


@dataclass(frozen=True)
class Bounds:
    """What decides which entries enter windows; all int64 [W], seconds but for `user_W`.

    Attributes:
        user_W: user index.
        first_W, last_W: of the first input, and of the last target.
        until_W: nothing later enters; None: up to the last target.
    """

    user_W: np.ndarray
    first_W: np.ndarray
    last_W: np.ndarray
    until_W: np.ndarray | None


def bounds_of(windows: Windows, columns: EventColumns, form: str) -> Bounds:
    """Of windows as they are before thinning."""
    begin_W, times_E = columns.offsets[windows.user], columns.timestamps
    first_W = times_E[begin_W + windows.start].astype(np.int64)
    last_W = times_E[begin_W + (windows.stop if windows.asked is None else windows.asked)].astype(np.int64)
    until_W = None
    if windows.are_requests or form == INTERACTIONS:
        until_W = times_E[begin_W + windows.stop - 1].astype(np.int64)
    return Bounds(windows.user, first_W, last_W, until_W)


def counted(merger: SeriesMerger, bounds: Bounds) -> np.ndarray:
    """How many entries enter each window, int64 [W]."""
    return merger.counts(bounds.user_W, bounds.first_W, bounds.last_W, bounds.until_W)


def merged(merger: SeriesMerger, tokens: Tokens, columns: EventColumns, form: str) -> MergedSeries:
    """The entries that enter some windows; `before` counts the events of their sequences (data/ranking/layout.py)."""
    assert tokens.windows is not None, "tokens of no windows are given their entries"
    bounds = bounds_of(tokens.windows, columns, form)
    # In front of each sequence stands the first event of the window, which may have been thinned out.
    starts_B = tokens.offsets_B[:-1] + np.arange(len(bounds.user_W))
    times = np.insert(columns.timestamps[tokens.event_at_m].astype(np.int64), starts_B, bounds.first_W)
    found = merger.merge(bounds.user_W, times, tokens.offsets_B + 2 * np.arange(len(tokens.offsets_B)), bounds.until_W)
    time_s = aged(found.time, bounds.first_W[found.window])
    return MergedSeries(found.value, time_s, found.window, np.maximum(found.before - 1, 0))


def aged(time_s: np.ndarray, first_s: np.ndarray) -> np.ndarray:
    """Seconds of tokens, from which on their values hold, but none older than OLDEST.

    Args:
        first_s: when the window of each begins.
    """
    key_times_s: np.ndarray = np.maximum(time_s, first_s - OLDEST)
    return key_times_s
