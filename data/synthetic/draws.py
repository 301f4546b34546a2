"""Draws from what is out by a given time: weighted, within a group, one binary search a draw.

Members (items) lie in groups (a genre's, an artist's) and are out from a moment on. Within a group they
stand by that moment, so those out by time t are a prefix, and running sums of weights are all that a draw
needs. A weight that halves with age every so many ticks needs no more: w·2^(−(t−out)/half) is
w·2^(out/half) up to a factor that all members share.

N members · G groups · Q queries.
"""

from __future__ import annotations

import numpy as np

_SPAN = 2**40
"""Ticks kept apart for one group in the search keys: more than any time in use."""


def generator(seed: int) -> np.random.Generator:
    """NumPy's PCG64 by name, so that a new default of NumPy changes no log."""
    return np.random.Generator(np.random.PCG64(seed))


class Released:
    """The members of each group by time of release."""

    def __init__(self, group_N: np.ndarray, release_N: np.ndarray, num_groups: int) -> None:
        """Sort the members by (group, release). Releases may be negative."""
        self._least = int(release_N.min())
        keys_N = group_N.astype(np.int64) * _SPAN + (release_N - self._least)
        self.order_N = np.argsort(keys_N, kind="stable")
        self._keys_N = keys_N[self.order_N]
        self.first_G = np.searchsorted(group_N[self.order_N], np.arange(num_groups + 1))

    def ends(self, group_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        """One past the place of the last member of each group that is out by `time_Q`: int64 [Q]."""
        ends_Q: np.ndarray = np.searchsorted(
            self._keys_N, group_Q.astype(np.int64) * _SPAN + (time_Q - self._least), side="right"
        )
        return ends_Q


class Weighted:
    """Draws from the prefixes of a `Released` by one set of weights."""

    def __init__(self, released: Released, weight_N: np.ndarray) -> None:
        """Take `weight_N`, one a member in the members' own order, all above 0."""
        self._released = released
        self._sums_N = np.concatenate([[0.0], np.cumsum(weight_N[released.order_N], dtype=np.float64)])

    def draw(self, group_Q: np.ndarray, end_Q: np.ndarray, uniform_Q: np.ndarray) -> np.ndarray:
        """A member of each group from those before `end_Q` (of `Released.ends`); every prefix must hold one.

        `uniform_Q` in [0, 1) is the randomness.
        """
        first_Q = self._released.first_G[group_Q]
        low_Q, high_Q = self._sums_N[first_Q], self._sums_N[end_Q]
        place_Q = np.searchsorted(self._sums_N, low_Q + uniform_Q * (high_Q - low_Q), side="right") - 1
        # Rounding may reach a neighbour of the prefix.
        member_Q: np.ndarray = self._released.order_N[np.clip(place_Q, first_Q, end_Q - 1)]
        return member_Q


def hashed_uniform(salt: int, *parts_Q: np.ndarray) -> np.ndarray:
    """A number in [0, 1) that follows from whole numbers, one a query: float64 [Q]. Equal numbers, equal result.

    SplitMix64's finaliser, once for each of `parts_Q` (none negative).
    """
    state_Q: np.ndarray = np.full(len(parts_Q[0]), salt, dtype=np.uint64)
    for part_Q in parts_Q:
        state_Q = (state_Q + part_Q.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state_Q = (state_Q ^ (state_Q >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state_Q = (state_Q ^ (state_Q >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state_Q = state_Q ^ (state_Q >> np.uint64(31))
    return np.asarray((state_Q >> np.uint64(11)) * 2.0**-53)


def choice(cumulative_K: np.ndarray, uniform_Q: np.ndarray) -> np.ndarray:
    """Indices by cumulative shares, for few categories: int8 [Q] is the number of shares that lie at or below."""
    chosen_Q = np.zeros(len(uniform_Q), dtype=np.int8)
    for share in cumulative_K[:-1]:
        chosen_Q += uniform_Q >= share
    return chosen_Q
