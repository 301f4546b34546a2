"""Series compressed: of each run of equal values the earliest entry is kept (HSTU paper, §2.1).

Shapes: s entries, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Entries:
    """States of some users.

    Attributes:
        user_s: int64, which user, by place in a block or in all.
        time_s: int64, the second from which on the value holds.
        value_s: int64, numbers of values over all series.
    """

    user_s: np.ndarray
    time_s: np.ndarray
    value_s: np.ndarray

    def __len__(self) -> int:
        """S."""
        return len(self.user_s)

    def take(self, places: np.ndarray) -> Entries:
        """Some of them."""
        return Entries(self.user_s[places], self.time_s[places], self.value_s[places])

    @staticmethod
    def joined(parts: list[Entries]) -> Entries:
        """One after another."""
        nothing = np.zeros(0, dtype=np.int64)
        return Entries(
            np.concatenate([nothing, *(part.user_s for part in parts)]),
            np.concatenate([nothing, *(part.time_s for part in parts)]),
            np.concatenate([nothing, *(part.value_s for part in parts)]),
        )


def change_points(entries: Entries, series_V: np.ndarray) -> Entries:
    """The first entry of each run of equal values of a user's series, by user, time and series.

    Of entries of one user, series and second the last given counts, the state in which the second ends.

    Args:
        entries: in any order.
        series_V: int64, the series of each value.
    """
    series_s = series_V[entries.value_s]
    order = np.lexsort((entries.time_s, series_s, entries.user_s))  # a stable sort
    user_s, series_s = entries.user_s[order], series_s[order]
    same_s = (user_s[1:] == user_s[:-1]) & (series_s[1:] == series_s[:-1])
    overruled_s = same_s & (entries.time_s[order][1:] == entries.time_s[order][:-1])
    order = order[np.append(~overruled_s, True)[: len(order)]]
    user_s, value_s = entries.user_s[order], entries.value_s[order]
    # Values of different series differ, so that equal neighbours are of one series.
    goes_on_s = (user_s[1:] == user_s[:-1]) & (value_s[1:] == value_s[:-1])
    kept = entries.take(order[np.append(True, ~goes_on_s)[: len(order)]])
    return kept.take(np.lexsort((series_V[kept.value_s], kept.time_s, kept.user_s)))
