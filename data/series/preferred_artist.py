"""The artist that a user had most events of in a period, known once the period is over: a series made of the events.

Periods are counted from the log's first second. What is known from second t on is made of events before t alone.

Shapes: U users of a block · E their events · N items · r pairs of user and period that have events.
"""

from __future__ import annotations

import numpy as np

from data.ranges import run_starts
from data.series.change_points import Entries
from data.series.values import NO_ARTIST

NAME = "preferred_artist"
_END_OF_TIME = 2**32


def preferred_artists(
    offsets: np.ndarray, items_E: np.ndarray, times_E: np.ndarray, artist_N: np.ndarray, *, origin: int, period: int
) -> Entries:
    """An entry for each user and period with events, whether it changes anything or not; values are dense artists.

    Every event counts, of whatever type. Of artists with as many events the lower index wins. An event of an item
    without artists counts for none, and a period without any says nothing, so that what was known stays.

    Args:
        offsets: int64 [U + 1] into the events; a user's times ascend.
        artist_N: int64, the first artist of each item, NO_ARTIST where there is none.
        origin: the log's first second.
        period: seconds.
    """
    user_E = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    artist_E = artist_N[items_E]
    told = np.flatnonzero(artist_E != NO_ARTIST)
    user_E, artist_E = user_E[told], artist_E[told]
    period_E = (times_E[told].astype(np.int64) - origin) // period
    starts_r = run_starts(user_E, period_E)
    pair_E = np.repeat(np.arange(len(starts_r)), np.diff(starts_r, append=len(told)))
    step = int(artist_N.max(initial=0)) + 1
    keys, counts = np.unique(pair_E * step + artist_E, return_counts=True)  # below 2^63: events times artists
    pairs, artists = keys // step, keys % step
    begins = run_starts(pairs)
    most_r = np.maximum.reduceat(counts, begins) if len(begins) else counts
    best = np.flatnonzero(counts == most_r[pairs])
    chosen = best[run_starts(pairs[best])]  # keys ascend, so the lowest artist comes first
    known_r = origin + (period_E[starts_r] + 1) * period
    entries = Entries(user_E[starts_r], known_r, artists[chosen])
    return entries.take(np.flatnonzero(known_r < _END_OF_TIME))


def first_artists(artist_offsets: np.ndarray, artist_values: np.ndarray) -> np.ndarray:
    """The first artist of each item, int64 [N]; NO_ARTIST where there is none."""
    first_N = np.full(len(artist_offsets) - 1, NO_ARTIST, dtype=np.int64)
    has_one = np.flatnonzero(np.diff(artist_offsets))
    first_N[has_one] = artist_values[artist_offsets[has_one]]
    return first_N
