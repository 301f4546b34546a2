"""One pass over a store's flat columns: blocks of whole users, and what is counted in each.

A counter is shown every block once, in any order, and holds its counts only.

Shapes: E events of a block · U its users · N items of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data import schema

BLOCK_EVENTS = 2_000_000
SESSION_GAP = 30 * 60
"""Seconds without an event after which another session begins."""
HOUR, DAY = 3600, 86400
MOST_BINS = 400
"""Of a timeline: more cannot be told apart on a page."""
PLAYED_TENS = 21
"""Bins of the played ratio: 0–9, 10–19, … 190–199 percent, and the last for 200 and above."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """The whole histories of some users.

    Attributes:
        starts: int64 [U], where each user's events begin in the columns; every user has at least one.
        size: E.
        columns: name → values [E], views of the store's.
    """

    starts: Ints
    size: int
    columns: Mapping[str, np.ndarray]

    @staticmethod
    def cut(offsets: np.ndarray, columns: Mapping[str, np.ndarray], first: int, last: int) -> Block:
        """The histories of users [first, last), cut out of the store's columns."""
        bounds = np.asarray(offsets[first : last + 1], dtype=np.int64)
        begin, end = int(bounds[0]), int(bounds[-1])
        return Block(bounds[:-1] - begin, end - begin, {name: values[begin:end] for name, values in columns.items()})


class CountTimes:
    """Events, and users with an event, in bins of a day; of hours where the store spans few days, else of some days.

    Args:
        first: timestamp of the first event of the store.
        last: of the last.
    """

    def __init__(self, first: int, last: int) -> None:
        """Choose the width of a bin."""
        if last - first < 4 * DAY:
            self.width = HOUR
        else:
            self.width = DAY * -(-(last // DAY - first // DAY + 1) // MOST_BINS)
        self.start = first // self.width * self.width
        bins = (last - self.start) // self.width + 1
        self.events = np.zeros(bins, dtype=np.int64)
        self.users = np.zeros(bins, dtype=np.int64)

    def add(self, block: Block) -> None:
        """Count a block."""
        bin_E = (block.columns[schema.TIMESTAMP].astype(np.int64) - self.start) // self.width
        self.events += np.bincount(bin_E, minlength=len(self.events))
        entered_E = np.ones(block.size, dtype=bool)
        np.not_equal(bin_E[1:], bin_E[:-1], out=entered_E[1:])
        entered_E[block.starts] = True  # time only goes on within a user, so each enters a bin once
        self.users += np.bincount(bin_E[entered_E], minlength=len(self.users))


class CountGaps:
    """Gaps between successive events of a user, in seconds, and sessions.

    Attributes:
        doubling: int64 [65], gaps of 0, 1, 2–3, 4–7, 8–15, … seconds.
        sessions: how many.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.doubling = np.zeros(65, dtype=np.int64)
        self.sessions = 0

    def add(self, block: Block) -> None:
        """Count a block."""
        is_gap_E = np.ones(block.size, dtype=bool)
        is_gap_E[block.starts] = False
        gaps = np.diff(block.columns[schema.TIMESTAMP].astype(np.int64), prepend=0)[is_gap_E]
        # gap = m · 2**exponent with ½ ≤ m < 1: the exponent tells how many binary digits it has.
        exponent = np.frexp(gaps.astype(np.float64))[1]
        self.doubling += np.bincount(exponent, minlength=len(self.doubling))
        self.sessions += len(block.starts) + int(np.count_nonzero(gaps > SESSION_GAP))


class CountItems:
    """Events of each item: int64 [N]."""

    def __init__(self, num_items: int) -> None:
        """Begin with nothing."""
        self.events_N: Ints = np.zeros(num_items, dtype=np.int64)

    def add(self, block: Block) -> None:
        """Count a block."""
        self.events_N += np.bincount(block.columns[schema.ITEM], minlength=len(self.events_N))


class CountRepeats:
    """Events whose item the same user had before: all events but the first of each pair of user and item."""

    def __init__(self, num_items: int) -> None:
        """Begin with nothing."""
        self.num_items = num_items
        self.repeats = 0

    def add(self, block: Block) -> None:
        """Count a block."""
        user_E = np.zeros(block.size, dtype=np.int64)
        user_E[block.starts[1:]] = 1
        np.cumsum(user_E, out=user_E)
        # A block has far fewer users than 2**31, and a store fewer items than 2**32: the pair fits.
        pair_E = user_E * self.num_items + block.columns[schema.ITEM]
        pair_E.sort()
        self.repeats += int(np.count_nonzero(pair_E[1:] == pair_E[:-1]))


class CountPlays:
    """What the optional columns hold.

    Attributes:
        missing: events without a value, of each column that was seen.
        organic: events that the user found, None where the column was not seen.
        played_tens: int64 [`PLAYED_TENS`], events by tens of percent played; None likewise.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.missing: dict[str, int] = {}
        self.organic: int | None = None
        self.played_tens: Ints | None = None

    def add(self, block: Block) -> None:
        """Count a block."""
        for name in schema.OPTIONAL_COLUMNS:
            if name in block.columns:
                absent = int(np.count_nonzero(block.columns[name] == schema.EVENT_COLUMNS[name].missing))
                self.missing[name] = self.missing.get(name, 0) + absent
        if schema.ORGANIC in block.columns:
            found = int(np.count_nonzero(block.columns[schema.ORGANIC] == 1))
            self.organic = (self.organic or 0) + found
        if schema.PLAYED_RATIO in block.columns:
            ratio_E = block.columns[schema.PLAYED_RATIO]
            known = ratio_E[ratio_E != schema.MISSING_PLAYED_RATIO]
            tens = np.bincount(np.minimum(known // 10, PLAYED_TENS - 1), minlength=PLAYED_TENS)
            self.played_tens = tens if self.played_tens is None else self.played_tens + tens
