"""Where the entries of each row begin, in as few bytes as the rows allow: offsets of a prefix trie's levels.

Plain offsets cost 4 bytes a row. In deep levels of a trie nearly every node has one child, and they would say nothing
but "the next". So there are three forms, and a list of rows takes the smallest:

- `plain`: [R + 1] numbers.
- `counted`, where every row has an entry and few have more: row r begins at r + (entries beyond one of the rows
  before). A block of 32 rows is one word: which of its rows have more than one entry in the lower half, how many such
  rows stand before the block in the upper; `more[k]` holds the entries beyond one of the first k such rows. So a row
  is found by one gather of a word, a count of bits in it, and a gather of `more`: a quarter of a byte a row and 4 bytes
  a row with more than one entry.
- `one`: every row has exactly one entry, and nothing is kept.

R rows · E entries · K rows with more than one entry · X rows asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[np.unsignedinteger]]

BLOCK_BITS = 5
BLOCK = 1 << BLOCK_BITS
"""Rows of a block: their marks fill half a word of 64 bits."""

MAX_ENTRIES = 2**31 - 1
"""torch has no unsigned 32 bits to count with, so the uppermost stays free."""


@dataclass(frozen=True, eq=False)
class Offsets:
    """Row r has entries offset(r) … offset(r + 1) - 1. NumPy sees an array of R + 1 offsets."""

    rows: int
    """R."""
    plain: npt.NDArray[np.uint32] | None = None
    """[R + 1], or None in another form."""
    blocks: npt.NDArray[np.uint64] | None = None
    """[⌈R / 32⌉], of the counted form."""
    more: npt.NDArray[np.uint32] | None = None
    """[K + 1], of the counted form."""

    @staticmethod
    def of(offsets: Indices) -> Offsets:
        """The smallest form of ascending offsets [R + 1] that begin with 0."""
        rows = len(offsets) - 1
        assert offsets[0] == 0, offsets[0]
        assert offsets[-1] <= MAX_ENTRIES, offsets[-1]
        sizes = np.diff(offsets)
        if (sizes == 1).all():
            return Offsets(rows)
        several = np.flatnonzero(sizes > 1)
        blocks = -(-rows // BLOCK)
        if not sizes.all() or 8 * blocks + 4 * (len(several) + 1) >= 4 * (rows + 1):
            return Offsets(rows, plain=offsets.astype(np.uint32))
        more = np.append(0, np.cumsum(sizes[several] - 1)).astype(np.uint32)
        return Offsets(rows, blocks=_blocks(several, blocks), more=more)

    @property
    def form(self) -> str:
        """`plain`, `counted` or `one`."""
        if self.plain is not None:
            return "plain"
        return "one" if self.blocks is None else "counted"

    @property
    def entries(self) -> int:
        """E."""
        if self.plain is not None:
            return int(self.plain[-1])
        return self.rows + (0 if self.more is None else int(self.more[-1]))

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, npt.NDArray[np.unsignedinteger]]:
        """What is kept, by name."""
        named = {"plain": self.plain, "blocks": self.blocks, "more": self.more}
        return {name: array for name, array in named.items() if array is not None}

    def ranges(self, rows_X: npt.NDArray[np.integer]) -> tuple[Indices, Indices]:
        """First entry [X] of each row, and the one after its last; rows are 0 … R - 1."""
        rows = rows_X.astype(np.int64)
        if self.plain is not None:
            return self.plain[rows].astype(np.int64), self.plain[rows + 1].astype(np.int64)
        if self.blocks is None or self.more is None:
            return rows, rows + 1
        word = self.blocks[rows >> BLOCK_BITS]
        # Marks of the row itself and of those before it in its block, the row's own uppermost.
        marks = (word << np.uint64(32)) << (BLOCK - 1 - (rows & (BLOCK - 1))).astype(np.uint64)
        own = (marks >> np.uint64(63)).astype(np.int64)
        through = (word >> np.uint64(32)).astype(np.int64) + np.bitwise_count(marks)
        return rows + self.more[through - own], rows + 1 + self.more[through]

    def rows_of(self, entries_X: npt.NDArray[np.integer]) -> Indices:
        """The row [X] that each entry belongs to; a search where rows have more than one entry."""
        entries = entries_X.astype(np.int64)
        if self.plain is not None:
            return np.searchsorted(self.plain, entries, side="right") - 1
        if self.blocks is None or self.more is None:
            return entries
        # The first entry beyond one of the k-th row with several stands at (row k) + more[k] + 1.
        several, more = self._several(), self.more.astype(np.int64)
        k = np.searchsorted(several + more[:-1] + 1, entries, side="right")
        # Entries after the last of that row are told by how many stand before them, the others are of that row itself.
        last = np.where(k > 0, several[k - 1] if len(several) else 0, -1)
        rows: Indices = np.maximum(entries - more[k], last)
        return rows

    def marks_of_begins(self) -> npt.NDArray[np.uint64]:
        """Words of 32 entries as in the counted form, with the entries marked that a row begins with.

        So the row of an entry is found by one gather of a word and a count of bits in it. Every row must have entries,
        unless there are none at all.
        """
        begins = self.expanded()[:-1]
        return _blocks(begins[begins < self.entries], -(-self.entries // BLOCK))

    def expanded(self) -> Indices:
        """All R + 1 offsets."""
        if self.plain is not None:
            return self.plain.astype(np.int64)
        offsets = np.arange(self.rows + 1)
        if self.more is not None:
            beyond = np.zeros(self.rows + 1, np.int64)
            beyond[self._several() + 1] = np.diff(self.more.astype(np.int64))
            offsets += np.cumsum(beyond)
        return offsets

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        del copy  # always one
        return self.expanded().astype(np.int64 if dtype is None else dtype)

    def _several(self) -> Indices:
        """Rows [K] with more than one entry."""
        assert self.blocks is not None
        marks = (self.blocks & np.uint64(0xFFFFFFFF)).astype("<u4").view(np.uint8)
        return np.flatnonzero(np.unpackbits(marks, bitorder="little"))


def _blocks(several: Indices, count: int) -> npt.NDArray[np.uint64]:
    """Words of `count` blocks with these rows marked, which ascend."""
    marks = np.zeros(count * BLOCK, np.uint8)
    marks[several] = 1
    bits = np.packbits(marks, bitorder="little").view("<u4").astype(np.uint64)
    before = np.searchsorted(several, np.arange(count) * BLOCK).astype(np.uint64)
    return bits | (before << np.uint64(32))


def faults_of(rows: int, entries: int, arrays: Arrays) -> list[str]:
    """What keeps arrays from being offsets of so many rows and entries, as far as their shapes and ends tell."""
    forms: dict[frozenset[str], list[tuple[str, int]]] = {
        frozenset(): [],
        frozenset({"plain"}): [("plain", rows + 1)],
        frozenset({"blocks", "more"}): [("blocks", -(-rows // BLOCK))],
    }
    if (wanted := forms.get(frozenset(arrays))) is None:
        return [f"holds {sorted(arrays)}, expected `plain`, or `blocks` and `more`, or none"]
    faults = [
        f"`{name}` holds {len(arrays[name])} numbers, expected {length}"
        for name, length in wanted
        if len(arrays[name]) != length
    ]
    if any(len(array) == 0 for name, array in arrays.items() if name != "blocks"):
        return [*faults, "an array that ends with the number of entries is empty"]
    if not faults and (found := Offsets(rows, **arrays).entries) != entries:
        faults.append(f"{rows} rows have {found} entries, expected {entries}")
    return faults
