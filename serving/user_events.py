"""One user's events as a server has them: the columns of an event store, without the store.

Shapes: n events of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from data.schema import MISSING_DURATION, MISSING_ORGANIC, MISSING_PLAYED_RATIO

Ints = npt.NDArray[np.int64]

_MISSING = {"durations": MISSING_DURATION, "organic": MISSING_ORGANIC, "played": MISSING_PLAYED_RATIO}


def whole_numbers(values: npt.ArrayLike, what: str) -> Ints:
    """A column of whole numbers, int64 [n].

    Raises:
        InputError: they are of another type; `what` names them.
    """
    found = np.asarray(values)
    if found.dtype.kind not in "iub" and found.size:
        raise InputError(f"{what} are of type {found.dtype}: give whole numbers")
    return found.astype(np.int64).reshape(-1)


def check_ascending(times: Ints, plural: str, one: str) -> None:
    """See that rows stand in the order of time.

    Raises:
        InputError: they do not; `plural` and `one` name them.
    """
    backwards = np.flatnonzero(np.diff(times) < 0)
    if len(backwards):
        at = int(backwards[0])
        raise InputError(
            f"{plural}: {one} {at + 1} is at {times[at + 1]} s, before {one} {at} at {times[at]} s: give them in "
            f"the order of time, oldest first"
        )


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
        """From whatever makes arrays of whole numbers; one number stands for as many as there are items.

        Raises:
            InputError: columns of different lengths, numbers that are not whole, or events not in the order of time.
        """
        given = (items, timestamps, event_types, durations, organic, played)
        columns = [None if values is None else whole_numbers(values, "columns of events") for values in given]
        count, names = np.asarray(items).size, [field.name for field in fields(cls)]
        faults = [
            f"events: {len(column)} values in `{name}` and {count} in `items`: give one an event"
            for name, column in zip(names, columns, strict=True)
            if column is not None and len(column) != count and not (len(column) == 1 and name != "items")
        ]
        if faults:
            raise InputError(*faults)
        columns = [None if column is None else np.broadcast_to(column, (count,)) for column in columns]
        times = columns[1]
        assert times is not None
        check_ascending(times, "events", "event")
        return cls(*columns)  # type: ignore[arg-type]

    @classmethod
    def none(cls) -> UserEvents:
        """Of a user who has done nothing."""
        return cls.of([], [], [])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, part: slice) -> UserEvents:
        return UserEvents(*(None if column is None else column[part] for column in self.columns))  # type: ignore[arg-type]

    def __add__(self, later: UserEvents) -> UserEvents:
        return joined([self, later])

    @property
    def columns(self) -> tuple[Ints | None, ...]:
        """In the order of the attributes."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return sum(column.size * column.itemsize for column in self.columns if column is not None)

    def begins_with(self, earlier: UserEvents) -> bool:
        """Whether the first of these events are those."""
        if len(earlier) > len(self):
            return False
        pairs = zip(joined([earlier]).columns, self[: len(earlier)].columns, _MARKS, strict=True)
        return all(
            np.array_equal(_filled(a, len(earlier), mark), _filled(b, len(earlier), mark)) for a, b, mark in pairs
        )


_NAMES = [field.name for field in fields(UserEvents)]
_MARKS = [_MISSING.get(name, 0) for name in _NAMES]


def _filled(column: Ints | None, count: int, mark: int) -> Ints:
    return np.full(count, mark, dtype=np.int64) if column is None else column


def joined(parts: Sequence[UserEvents]) -> UserEvents:
    """The events of several, one after another; the order of time is not looked at."""
    columns: list[Ints | None] = []
    for number, (name, mark) in enumerate(zip(_NAMES, _MARKS, strict=True)):
        own = [part.columns[number] for part in parts]
        if name in _MISSING and all(column is None for column in own):
            columns.append(None)
            continue
        filled = [_filled(column, len(part), mark) for column, part in zip(own, parts, strict=True)]
        columns.append(np.concatenate([np.zeros(0, dtype=np.int64), *filled]))
    return UserEvents(*columns)  # type: ignore[arg-type]
