"""A user's slow series beside the events, and where they stand in a window that is read event by event.

An entry may come late, to stand in front of events that were read without it. So what stands in front of these is
remembered, and compared with what now should.

Shapes: B users · s entries of a user · k events of a window · W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.errors import InputError
from data.ranking.series_tokens import SeriesRows, aged
from data.series.columns import SeriesColumns
from data.series.merge import MergedSeries, SeriesMerger
from serving.user_events import Ints, check_times, whole_numbers


@dataclass(frozen=True)
class UserSeries:
    """Values that one user's series took, as an event store has them (data/schema.py): changes alone, oldest first.

    Attributes:
        values: int64 [s], numbers of values.
        timestamps: int64 [s], seconds, ascending: from when on each holds.
    """

    values: Ints
    timestamps: Ints

    @classmethod
    def of(cls, values: npt.ArrayLike, timestamps: npt.ArrayLike) -> UserSeries:
        """From whatever makes arrays of whole numbers.

        Raises:
            InputError: other lengths, numbers that are not whole or no seconds, entries not in the order of time.
        """
        own, times = whole_numbers(values, "series: `values`"), whole_numbers(timestamps, "series: `timestamps`")
        if len(own) != len(times):
            raise InputError(f"series: {len(own)} values and {len(times)} timestamps: give a timestamp for each value")
        check_times(times, "series", "entry")
        order = np.lexsort((own, times))  # of one instant by series, as values are numbered
        return cls(own[order], times[order])

    @classmethod
    def none(cls) -> UserSeries:
        """Of a user of whom nothing is told."""
        return cls.of([], [])

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> UserSeries:
        return UserSeries(self.values[part], self.timestamps[part])

    def __add__(self, later: UserSeries) -> UserSeries:
        return UserSeries.of(
            np.concatenate([self.values, later.values]), np.concatenate([self.timestamps, later.timestamps])
        )

    @property
    def nbytes(self) -> int:
        """Of both columns."""
        return self.values.nbytes + self.timestamps.nbytes

    def begins_with(self, earlier: UserSeries) -> bool:
        """Whether the first of these entries are those."""
        first = self[: len(earlier)]
        return np.array_equal(first.values, earlier.values) and np.array_equal(first.timestamps, earlier.timestamps)


@dataclass(frozen=True)
class PlacedSeries:
    """The entries of a user that enter a run of events; all int64 [s].

    Attributes:
        values: numbers of values.
        key_times: seconds that their tokens have.
        before: event of the run in front of which each stands, ascending; the run's length: behind its last.
    """

    values: Ints
    key_times: Ints
    before: Ints

    @classmethod
    def none(cls) -> PlacedSeries:
        """No entries."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, nothing)

    def __len__(self) -> int:
        return len(self.values)

    def between(self, start: int, stop: int) -> PlacedSeries:
        """What stands in front of the events start … stop-1, counted from `start` on."""
        inside = (self.before >= start) & (self.before < stop)
        return PlacedSeries(self.values[inside], self.key_times[inside], self.before[inside] - start)

    def same(self, other: PlacedSeries) -> bool:
        """Whether these are those, in the same places."""
        pairs = ((self.values, other.values), (self.key_times, other.key_times), (self.before, other.before))
        return all(np.array_equal(one, two) for one, two in pairs)


def place(
    users: Sequence[UserSeries],
    times: Sequence[Ints],
    next_times_B: Ints,
    rows: SeriesRows,
    limit: int,
    *,
    up_to_next: bool,
) -> list[PlacedSeries]:
    """What enters windows of events and what follows them, as in training.

    Args:
        users: of each all entries.
        times: of each the seconds of the window's events; of none, nothing enters.
        next_times_B: when what follows each window happens.
        limit: the most entries of a window.
        up_to_next: whether what is known after the newest event enters, to stand in front of what follows.
    """
    placed = [PlacedSeries.none()] * len(users)
    asked = [row for row, (own, times_k) in enumerate(zip(users, times, strict=True)) if len(own) and len(times_k)]
    if not asked:
        return placed
    columns = SeriesColumns(
        offsets=np.cumsum([0, *(len(users[row]) for row in asked)]),
        timestamps=np.concatenate([users[row].timestamps for row in asked]),
        values=np.concatenate([users[row].values for row in asked]),
        names=("",) * rows.num_series,
        series_V=rows.series_V,
        artists_V=rows.artists_V,
        texts=pa.array([], type=pa.string()),
    )
    bounds = np.cumsum([0, *(len(times[row]) + 1 for row in asked)])
    sequences = np.concatenate([part for row in asked for part in (times[row], next_times_B[row : row + 1])])
    until_W = None if up_to_next else sequences[bounds[1:] - 2]
    found = SeriesMerger(columns, limit).merge(np.arange(len(asked)), sequences, bounds, until_W)
    key_times_s = aged(found.time, sequences[bounds[:-1]][found.window])
    cuts = np.searchsorted(found.window, np.arange(1, len(asked)))
    parts = [np.split(column, cuts) for column in (found.value, key_times_s, found.before)]
    for row, values, key_times, before in zip(asked, *parts, strict=True):
        placed[row] = PlacedSeries(values, key_times, before)
    return placed


def as_merged(runs: list[PlacedSeries]) -> MergedSeries:
    """Those of several runs, each of which is a window."""
    nothing = np.zeros(0, dtype=np.int64)
    return MergedSeries(
        np.concatenate([nothing, *(run.values for run in runs)]),
        np.concatenate([nothing, *(run.key_times for run in runs)]),
        np.repeat(np.arange(len(runs)), [len(run) for run in runs]),
        np.concatenate([nothing, *(run.before for run in runs)]),
    )


def check_series(rows: SeriesRows, known: Sequence[UserSeries], news: Sequence[UserSeries]) -> None:
    """See that new entries of some users can follow those that are known.

    Raises:
        InputError: an entry is earlier than a known one, a value is none of the model's, a series has two values at
            once; with every fault found.
    """
    faults, limit = [], len(rows.series_V)
    for row, (own, more) in enumerate(zip(known, news, strict=True)):
        outside = np.flatnonzero((more.values < 0) | (more.values >= limit))
        if len(outside):
            faults.append(
                f"series of user {row} of the batch: value {more.values[outside[0]]} is none of the {limit} that the "
                f"model knows; leave it out, or load the model of a newer store"
            )
        if len(own) and len(more) and more.timestamps[0] < own.timestamps[-1]:
            faults.append(
                f"series of user {row} of the batch: the first new entry is at {more.timestamps[0]} s, before the "
                f"newest known one at {own.timestamps[-1]} s: give entries in the order of time, or prepare the "
                f"history anew"
            )
        elif not len(outside):
            faults += _twice(rows, row, own, more)
    if faults:
        raise InputError(*faults)


def _twice(rows: SeriesRows, row: int, known: UserSeries, news: UserSeries) -> list[str]:
    """The first second in which a series of a user would have two values."""
    if not len(news):
        return []
    both = known[int(np.searchsorted(known.timestamps, news.timestamps[0])) :] + news
    series_s = rows.series_V[both.values]
    # Entries of one second stand by value, and the values of a series are numbered together.
    again = np.flatnonzero((np.diff(both.timestamps) == 0) & (np.diff(series_s) == 0))
    return [
        f"series of user {row} of the batch: series {series_s[at]} has the values {both.values[at]} and "
        f"{both.values[at + 1]} at {both.timestamps[at]} s: give the one that holds from then on"
        for at in again[:1]
    ]
