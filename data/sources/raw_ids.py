"""Raw whole-number ids ↔ dense indices: which ids occur, in ascending order, and the index of each."""

from __future__ import annotations

import numpy as np

ABSENT = np.uint32(2**32 - 1)
"""In place of a dense index: the id does not occur."""

FLAT_LIMIT = 2**27
"""Ids from 0 to here have a slot of their own in a flat table; others, which are rare, are kept sorted."""


MERGE_AT = 2**20
"""Of the others, so many wait before they are sorted in; more where more are known already."""


class RawIds:
    """A vocabulary of whole numbers: `add` all, `seal` once, then `find` any.

    Takes a byte for each number up to the largest id below FLAT_LIMIT while ids are added, four once it is sealed.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._present = np.zeros(0, dtype=bool)
        self._others = np.zeros(0, dtype=np.int64)
        self._pending: list[np.ndarray] = []
        self.ids = np.zeros(0, dtype=np.int64)
        self._table = np.zeros(0, dtype=np.uint32)
        self._other_index = np.zeros(0, dtype=np.uint32)

    def __len__(self) -> int:
        """N, once sealed."""
        return len(self.ids)

    def add(self, ids: np.ndarray) -> None:
        """Note that these ids occur: whole numbers [n] of any width that int64 holds."""
        if len(ids) == 0:
            return
        top = int(ids.max())
        if top >= FLAT_LIMIT or ids.min() < 0:
            flat = (ids >= 0) & (ids < FLAT_LIMIT)
            self._add_others(np.unique(ids[~flat]).astype(np.int64))
            ids = ids[flat]
            if len(ids) == 0:
                return
            top = int(ids.max())
        if top >= len(self._present):
            grown = np.zeros(min(max(2 * len(self._present), top + 1), FLAT_LIMIT), dtype=bool)
            grown[: len(self._present)] = self._present
            self._present = grown
        self._present[ids] = True

    def _add_others(self, ids: np.ndarray) -> None:
        """Merged now and then, so that memory stays near the vocabulary's size."""
        self._pending.append(ids)
        if sum(map(len, self._pending)) > max(len(self._others), MERGE_AT):
            self._merge()

    def _merge(self) -> None:
        self._others = np.unique(np.concatenate([self._others, *self._pending]))
        self._pending = []

    def seal(self) -> np.ndarray:
        """All ids, int64 [N], ascending; `find` may be asked from now on."""
        self._merge()
        flat = np.flatnonzero(self._present)
        self._present = np.zeros(0, dtype=bool)
        below = int(np.searchsorted(self._others, 0))
        self.ids = np.concatenate([self._others[:below], flat, self._others[below:]])
        self._table = np.full(int(flat[-1]) + 1 if len(flat) else 0, ABSENT, dtype=np.uint32)
        self._table[flat] = np.arange(below, below + len(flat), dtype=np.uint32)
        self._other_index = np.searchsorted(self.ids, self._others).astype(np.uint32)
        return self.ids

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Dense indices, uint32 [n]; ABSENT where an id does not occur."""
        if len(ids) == 0:
            return np.zeros(0, dtype=np.uint32)
        if ids.min() >= 0 and ids.max() < len(self._table):
            known: np.ndarray = self._table[ids]
            return known
        dense = np.full(len(ids), ABSENT, dtype=np.uint32)
        flat = (ids >= 0) & (ids < len(self._table))
        dense[flat] = self._table[ids[flat]]
        if len(self._others):
            at = np.minimum(np.searchsorted(self._others, ids), len(self._others) - 1)
            found = self._others[at] == ids
            dense[found] = self._other_index[at[found]]
        return dense
