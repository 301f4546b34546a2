"""Many ranges, runs and binary searches at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def positions_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions of the ranges [start, start + length), end to end, int64: `[10, 7]`, `[2, 3]` → `[10, 11, 7, 8, 9]`."""
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    positions: np.ndarray = np.arange(total) + np.repeat(starts.astype(np.int64) - (ends - lengths), lengths)
    return positions


def run_starts(*keys: np.ndarray) -> np.ndarray:
    """Positions at which a run of equal keys begins, int64: `[7, 7, 9]` → `[0, 2]`.

    Args:
        keys: [n] each; several are compared side by side.
    """
    begins_n = np.ones(len(keys[0]), dtype=bool)
    begins_n[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    starts: np.ndarray = np.flatnonzero(begins_n)
    return starts


def partition_points(
    low: np.ndarray, high: np.ndarray, holds: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """For each range [low, high), the first place at which a condition no longer holds; `high` where it always does.

    Args:
        low, high: int64 [n].
        holds: of (places, indices of their ranges), bool; true up to some place of a range and false from there on.
    """
    low, high = low.copy(), high.copy()
    while True:
        open_ranges = np.flatnonzero(low < high)
        if not len(open_ranges):
            return low
        middle = (low[open_ranges] + high[open_ranges]) // 2
        true = holds(middle, open_ranges)
        low[open_ranges[true]] = middle[true] + 1
        high[open_ranges[~true]] = middle[~true]
