"""Rows in any order → rows sorted by user and time, by way of files on the disk.

Users are dense indices 0 … U-1. Each partition holds a range of them, so that the partitions, read in turn and each
sorted in memory, give all users ascending.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

SORTED_ROWS = 2**21
"""About so many rows are sorted at once; more only where many fall on few users of successive indices."""

_PARTS_PER_SORT = 4
"""Partitions are smaller than what is sorted at once and joined when read: users are not equally active."""
_MOST_PARTITIONS = 4096

USER, TIME = "user", "time"


class Partitions:
    """Rows waiting to be sorted, in files of `folder`: a structured array each, of one dtype with USER and TIME.

    Takes the rows' own size on the disk; memory holds what is sorted at once.
    """

    def __init__(self, folder: Path, dtype: np.dtype[np.void], num_users: int, num_rows: int) -> None:
        """Choose how many partitions there are."""
        self._folder, self._dtype, self._num_users = folder, dtype, num_users
        wanted = -(-num_rows * _PARTS_PER_SORT // SORTED_ROWS)
        self._count = max(1, min(wanted, num_users, _MOST_PARTITIONS))
        self._rows = np.zeros(self._count, dtype=np.int64)

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition:04d}.rows"

    def add(self, rows: np.ndarray) -> None:
        """Append each row to its user's partition, in the order in which they come."""
        partition = rows[USER].astype(np.int64) * self._count // self._num_users
        order = np.argsort(partition, kind="stable")
        counts = np.bincount(partition, minlength=self._count)
        ends = np.cumsum(counts)
        shared_out = _taken(rows, order)
        for number in np.flatnonzero(counts).tolist():
            # Opened anew each time: there may be more partitions than files that a process may hold open.
            with self._path(number).open("ab") as file:
                file.write(shared_out[ends[number] - counts[number] : ends[number]].data)
        self._rows += counts

    def sorted(self) -> Iterator[np.ndarray]:
        """Blocks of all rows of some users, by user and time; rows of one time stay in the order in which they came."""
        parts: list[np.ndarray] = []
        for number in range(self._count):
            if self._rows[number]:
                parts.append(np.fromfile(self._path(number), dtype=self._dtype))
                assert len(parts[-1]) == self._rows[number]
                self._path(number).unlink()
            following = self._rows[number + 1] if number + 1 < self._count else SORTED_ROWS
            if parts and sum(map(len, parts)) + following > SORTED_ROWS:
                rows = np.concatenate(parts)
                parts = []
                yield _taken(rows, _order(rows))


def _taken(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`rows[order]`, by bytes: NumPy copies structures field by field."""
    taken: np.ndarray = np.take(rows.view(np.uint8).reshape(len(rows), -1), order, axis=0).view(rows.dtype)
    return taken.reshape(-1)


def _order(rows: np.ndarray) -> np.ndarray:
    """A stable order by user and time."""
    user, time = rows[USER].astype(np.int64), rows[TIME]
    user -= user.min()
    time = time - time.min()
    span = int(time.max()) + 1
    if (int(user.max()) + 1) * span < 2**63:
        return np.argsort(user * span + time, kind="stable")  # one key sorts twice as fast as two
    return np.lexsort((time, user))
