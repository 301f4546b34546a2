"""Actions as numbers: what was done with an item, of which each has a row of the table `event_type`.

An action is an event type and how much of the item was played: id = type · (b + 2) + bucket, where b buckets share out
0 … 100% (the last has 100 itself), one more holds what was played more than once, and the last what is not known. Left
to the event types alone where b = 0 or the store does not know how much was played.

n events.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.batches import EventColumns
from data.schema import MISSING_PLAYED_RATIO

WHOLE = 100
"""The played ratio, in percent, of an item heard once from end to end; rewinds exceed it."""

_BEYOND, _NOT_KNOWN, _FURTHER = 0, 1, 2
"""Buckets behind the first b, and how many these are."""


def num_actions(event_types: int, played_buckets: int, has_played: bool) -> int:
    """How many actions there are.

    Args:
        event_types: how many the store has.
        played_buckets: b.
        has_played: whether the store knows how much of an item was played.
    """
    return event_types * (played_buckets + _FURTHER) if played_buckets and has_played else event_types


def action_names(event_types: Sequence[str], played_buckets: int, has_played: bool) -> list[str]:
    """What each action is, by number."""
    if num_actions(len(event_types), played_buckets, has_played) == len(event_types):
        return list(event_types)
    return [f"{name}/{bucket}" for name in event_types for bucket in range(played_buckets + _FURTHER)]


def actions_of(columns: EventColumns, at_n: np.ndarray, played_buckets: int) -> np.ndarray:
    """What was done in some events: int64 [n], below `num_actions`.

    Args:
        at_n: flat positions of the events.
        played_buckets: b.
    """
    event_types_n: np.ndarray = columns.event_types[at_n].astype(np.int64)
    if columns.played is None or not played_buckets:
        return event_types_n
    played_n = columns.played[at_n].astype(np.int64)
    buckets_n = np.minimum(played_n * played_buckets // WHOLE, played_buckets - 1)
    buckets_n[played_n > WHOLE] = played_buckets + _BEYOND
    buckets_n[played_n == MISSING_PLAYED_RATIO] = played_buckets + _NOT_KNOWN
    actions_n: np.ndarray = event_types_n * (played_buckets + _FURTHER) + buckets_n
    return actions_n
