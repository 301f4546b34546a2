"""Whether an id was there before, in eight bytes of memory an id.

A whole number is its own name; of text, a hash of 64 bits is kept, and whoever finds an equal one compares the ids
themselves.

n ids of a block or a part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Names = npt.NDArray[np.uint64]

MOST_IDS = 2**27
"""Ids that are remembered: 1 GB."""

_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def names_of(ids: pa.Array) -> Names:
    """64 bits [n] for each id: equal ids have equal ones, and different whole numbers different ones."""
    if pa.types.is_integer(ids.type):
        numbers: npt.NDArray[np.int64] = ids.to_numpy(zero_copy_only=False)
        return numbers.astype(np.uint64)
    # FNV-1a, a position of all texts at a time.
    texts = ids.cast(pa.large_binary())
    _, offset_buffer, byte_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(byte_buffer or b"", np.uint8)
    names_n = np.full(len(texts), _OFFSET)
    starts, lengths = offsets[:-1], np.diff(offsets)
    longer = np.arange(len(texts))
    with np.errstate(over="ignore"):
        for position in range(int(lengths.max(initial=0))):
            longer = longer[lengths[longer] > position]
            names_n[longer] = (names_n[longer] ^ content[starts[longer] + position]) * _PRIME
    return names_n


def first_repeat(names_n: Names, ids: pa.Array) -> tuple[int, int] | None:
    """Places in a part of the first id that stood there before, and of where it stood; None without any."""
    order = np.argsort(names_n, kind="stable")
    equal = np.flatnonzero(names_n[order][1:] == names_n[order][:-1])
    found = [
        (int(order[at + 1]), int(order[at])) for at in equal.tolist() if ids[int(order[at + 1])] == ids[int(order[at])]
    ]
    return min(found, default=None)


class SeenIds:
    """Ids of all parts so far, the first `most` of them."""

    def __init__(self, most: int = MOST_IDS) -> None:
        """Nothing was seen."""
        self._most = most
        self._sorted = np.zeros(0, np.uint64)

    def suspects(self, names_n: Names) -> npt.NDArray[np.int64]:
        """Places of ids that were seen before or have the hash of one that was, ascending."""
        at = np.searchsorted(self._sorted, names_n)
        inside = np.flatnonzero(at < len(self._sorted))
        found: npt.NDArray[np.int64] = inside[self._sorted[at[inside]] == names_n[inside]]
        return found

    def add(self, names_n: Names) -> None:
        """Remember ids, as far as there is room."""
        kept = names_n[: max(self._most - len(self._sorted), 0)]
        if len(kept):
            # A stable sort finds the two ascending runs and merges them.
            self._sorted = np.sort(np.concatenate([self._sorted, np.sort(kept)]), kind="stable")
