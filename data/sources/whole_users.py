"""Rows of a sorted log → blocks of whole users, cut alike however the rows came.

Shapes: R runs (a user's successive rows) · E events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data.ranges import run_starts


@dataclass(frozen=True)
class Runs:
    """Rows of a log, each user's in one run; the last run may go on in the next block.

    Attributes:
        users: whole numbers [R], successive ones differ.
        lengths: int64 [R], at least 1.
        columns: name → values [E], E the sum of `lengths`.
    """

    users: np.ndarray
    lengths: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def offsets(self) -> np.ndarray:
        """int64 [R + 1], where each run begins and ends."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)


def runs_of_rows(users: np.ndarray, columns: dict[str, np.ndarray]) -> Runs:
    """Runs of rows whose users are given one by one [E]."""
    starts = run_starts(users)
    return Runs(users[starts], np.diff(starts, append=len(users)), columns)


def whole_users(parts: Iterable[Runs], limit: int) -> Iterator[Runs]:
    """Join runs that a block's end had cut, and yield as many whole users at a time as have `limit` events together.

    Where blocks end depends on the users' lengths alone, not on how `parts` were cut, so that equal logs give equal
    blocks. Only a user with more events than `limit` makes a larger block. Memory holds one block and one part.
    """
    pending = _Pending()
    for part in parts:
        pending.add(part)
        while count := pending.complete(limit):
            yield pending.take(count)
    if len(pending.users):
        yield pending.take(len(pending.users))


class _Pending:
    """Runs that are not yielded yet; columns are joined only when they are."""

    def __init__(self) -> None:
        self.users = np.zeros(0, dtype=np.int64)
        self.lengths = np.zeros(0, dtype=np.int64)
        self._columns: list[dict[str, np.ndarray]] = []

    def add(self, part: Runs) -> None:
        if len(part.users) == 0:
            return
        users, lengths = part.users, part.lengths
        if len(self.users) and self.users[-1] == users[0]:
            self.lengths[-1] += lengths[0]
            users, lengths = users[1:], lengths[1:]
        self.users = np.concatenate([self.users, users])
        self.lengths = np.concatenate([self.lengths, lengths])
        self._columns.append(part.columns)

    def complete(self, limit: int) -> int:
        """How many runs make the next block; 0 while that is not known, since the last run may go on."""
        count = int(np.searchsorted(np.cumsum(self.lengths), limit, side="right"))
        if count == len(self.users):
            return 0
        return count if count else int(len(self.users) > 1)

    def take(self, count: int) -> Runs:
        joined = {name: np.concatenate([part[name] for part in self._columns]) for name in self._columns[0]}
        users, lengths = self.users[:count], self.lengths[:count]
        cut = int(lengths.sum())
        self.users, self.lengths = self.users[count:], self.lengths[count:]
        self._columns = [{name: values[cut:] for name, values in joined.items()}] if len(self.users) else []
        return Runs(users, lengths, {name: values[:cut] for name, values in joined.items()})
