"""One user's events as a server has them: the columns of an event store, without the store.

Shapes: n events of a user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from data.schema import EVENT_COLUMNS

Ints = npt.NDArray[np.int64]

_SECONDS = 2**32
"""What timestamps of a store are below."""


def whole_numbers(values: npt.ArrayLike, what: str) -> Ints:
    """A column of whole numbers, int64 [n].

    Raises:
        InputError: they are of another type; `what` names them.
    """
    found = np.asarray(values)
    if found.dtype.kind not in "iub" and found.size:
        raise InputError(f"{what} are of type {found.dtype}: give whole numbers")
    return found.astype(np.int64).reshape(-1)


def seconds_faults(times: Ints, what: str) -> list[str]:
    """What is no second of a store: attention counts seconds, and takes longer times for one another."""
    outside = np.flatnonzero((times < 0) | (times >= _SECONDS))
    return [
        f"{what}: {times[at]} is no second of a log: timestamps are seconds since 1970, or since its origin, "
        f"0 … {_SECONDS - 1}; milliseconds? divide by 1000"
        for at in outside[:1]
    ]


def check_times(times: Ints, plural: str, one: str) -> None:
    """See that rows have seconds, and stand in the order of time.

    Raises:
        InputError: they do not; `plural` and `one` name them.
    """
    faults = seconds_faults(times, f"{plural}: `timestamps`")
    backwards = np.flatnonzero(np.diff(times) < 0)
    if len(backwards):
        at = int(backwards[0])
        faults.append(
            f"{plural}: {one} {at + 1} is at {times[at + 1]} s, before {one} {at} at {times[at]} s: give them in "
            f"the order of time, oldest first"
        )
    if faults:
        raise InputError(*faults)


@dataclass(frozen=True)
class UserEvents:
    """One user's events as an event store has them (data/schema.py), oldest first; or, without times, candidates.

    Attributes:
        items: int64 [n], dense item indices.
        timestamps: int64 [n], seconds, ascending; of candidates all alike.
        event_types: int64 [n], indices of event types.
        durations, organic, played: int64 [n], with the store's marks for what is missing; None where all are.
    """

    items: Ints
    timestamps: Ints
    event_types: Ints
    durations: Ints | None = None
    organic: Ints | None = None
    played: Ints | None = None

    @classmethod
    def of(
        cls,
        items: npt.ArrayLike,
        timestamps: npt.ArrayLike,
        event_types: npt.ArrayLike = 0,
        durations: npt.ArrayLike | None = None,
        organic: npt.ArrayLike | None = None,
        played: npt.ArrayLike | None = None,
    ) -> UserEvents:
        """From whatever makes arrays of whole numbers; a number, but no list of one, stands for one an item.

        Raises:
            InputError: columns of different lengths, numbers that are not whole, timestamps that are no seconds or not
                in order.
        """
        given = (items, timestamps, event_types, durations, organic, played)
        found = [None if values is None else np.asarray(values) for values in given]
        count = np.asarray(items).size
        faults = [
            fault
            for name, values in zip(_NAMES, found, strict=True)
            if values is not None
            for fault in _column_faults(name, values, count)
        ]
        if faults:
            raise InputError(*faults)
        columns = [
            None if values is None else np.broadcast_to(values.astype(np.int64).reshape(-1), (count,))
            for values in found
        ]
        times = columns[1]
        assert times is not None
        check_times(times, "events", "event")
        return _of_columns(columns)

    @classmethod
    def none(cls) -> UserEvents:
        """Of a user who has done nothing."""
        return cls.of([], [], [])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, part: slice) -> UserEvents:
        return _of_columns([None if column is None else column[part] for column in self.columns])

    def __add__(self, later: UserEvents) -> UserEvents:
        return joined([self, later])

    @property
    def columns(self) -> tuple[Ints | None, ...]:
        """In the order of the attributes."""
        return tuple(getattr(self, name) for name in _NAMES)

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return sum(column.size * column.itemsize for column in self.columns if column is not None)

    def begins_with(self, earlier: UserEvents) -> bool:
        """Whether the first of these events are those."""
        if len(earlier) > len(self):
            return False
        pairs = zip(earlier.columns, self[: len(earlier)].columns, _MARKS, strict=True)
        return all(
            np.array_equal(_filled(a, len(earlier), mark), _filled(b, len(earlier), mark)) for a, b, mark in pairs
        )


_NAMES = [field.name for field in fields(UserEvents)]
_OF_STORE = dict(zip(_NAMES, EVENT_COLUMNS.values(), strict=True))
_MARKS = [column.missing or 0 for column in EVENT_COLUMNS.values()]


def _of_columns(columns: Sequence[Ints | None]) -> UserEvents:
    """In the order of the attributes, of which the first three are never None."""
    items, timestamps, event_types, *others = columns
    assert items is not None
    assert timestamps is not None
    assert event_types is not None
    return UserEvents(items, timestamps, event_types, *others)


def _column_faults(name: str, values: npt.NDArray[np.generic], count: int) -> Iterator[str]:
    if values.size and values.dtype.kind not in "iub":
        yield f"events: `{name}` is of type {values.dtype}: give whole numbers, {_OF_STORE[name].meaning}"
    if values.ndim and values.size != count:
        yield f"events: {values.size} values in `{name}` and {count} in `items`: give one an event"


def _filled(column: Ints | None, count: int, mark: int) -> Ints:
    return np.full(count, mark, dtype=np.int64) if column is None else column


def joined(parts: Sequence[UserEvents]) -> UserEvents:
    """The events of several, one after another; the order of time is not looked at."""
    own = [part.columns for part in parts]
    columns: list[Ints | None] = []
    for number, (of_store, mark) in enumerate(zip(EVENT_COLUMNS.values(), _MARKS, strict=True)):
        found = [of_part[number] for of_part in own]
        if of_store.missing is not None and all(column is None for column in found):
            columns.append(None)
            continue
        filled = [_filled(column, len(part), mark) for column, part in zip(found, parts, strict=True)]
        columns.append(np.concatenate([np.zeros(0, dtype=np.int64), *filled]))
    return _of_columns(columns)


def with_followers(events: UserEvents, places: Ints, times: Ints) -> UserEvents:
    """Events and, in front of each of some places, ascending, one of which nothing but its time is known."""
    known = [times if name == "timestamps" else mark for name, mark in zip(_NAMES, _MARKS, strict=True)]
    columns = [
        None if column is None else np.insert(column, places, value)
        for column, value in zip(events.columns, known, strict=True)
    ]
    return _of_columns(columns)
