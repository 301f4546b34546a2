"""Proof, for one prepared store, that nothing it trains on lies past its cut-off.

`data.split` finds positions by binary search and trusts that times ascend; here every timestamp is read once, in order,
and compared with the cut-off itself. Both must agree, or the store is not made.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import schema
from data.column_files import open_column, read_block
from data.sequences import NEWEST, TILED, training_windows
from data.split import (
    HELD_OUT_USERS,
    CutOffs,
    LeakageError,
    Split,
    SplitConfig,
    cut_offs,
    held_out_users,
    make_split,
)

_BLOCK_EVENTS = 2**21


def prove_no_leakage(folder: Path, config: SplitConfig, users: int, time_range: tuple[int, int]) -> None:
    """Check every event of the store in `folder` against its split.

    - Times never go down within a user, or a position would say nothing of a time.
    - By the clock: what training may see is exactly what is earlier than its cut-off, what a request sees exactly what
      is earlier than its own, and what is asked for lies in its period.
    - Users held out: none has a training event.
    - Every training window, newest or tiled, keeps to what training may see.

    Args:
        time_range: first and last timestamp of the store.

    Raises:
        LeakageError: with the first event, user or window that breaks the rule.
        InputError: as `make_split`.
    """
    offsets = open_column(folder / schema.column_file(schema.OFFSETS), np.dtype(np.int64), users + 1)
    path = folder / schema.column_file(schema.TIMESTAMP)
    cuts = cut_offs(config, time_range) if config.by_the_clock else None
    last_times: list[np.ndarray] = []
    for first, last in user_blocks(offsets, _BLOCK_EVENTS):
        begin, end = int(offsets[first]), int(offsets[last])
        # Read, not mapped: the pages of a mapped file count as this process's memory.
        times_E = read_block(path, schema.EVENT_COLUMNS[schema.TIMESTAMP].dtype, begin, end - begin)
        block = _Block(first, offsets[first : last + 1] - begin, times_E)
        block.check_order()
        last_times.append(times_E[block.offsets[1:] - 1])
        if config.kind != HELD_OUT_USERS:  # which depends on all users at once
            split = make_split(config, block.offsets, times_E, time_range)
            if cuts is not None:
                block.check_periods(split, cuts)
            _check_windows(block.offsets, split)
    if config.kind == HELD_OUT_USERS:
        split = held_out_users(config.test_share, np.diff(offsets), np.concatenate(last_times))
        _raise_at(split.test.asked_U & (split.train_end_U > 0), 0, "is held out, but has training events")
        _check_windows(offsets, split)


def _check_windows(offsets: np.ndarray, split: Split) -> None:
    for plan in (NEWEST, TILED):
        training_windows(offsets, split, max_history=1024, windows=plan)  # each checks itself


@dataclass(frozen=True)
class _Block:
    """Users from `first` on, their events' offsets within the block, and their timestamps."""

    first: int
    offsets: np.ndarray
    times_E: np.ndarray

    def check_order(self) -> None:
        down_E = np.zeros(len(self.times_E), dtype=bool)
        down_E[1:] = self.times_E[1:] < self.times_E[:-1]
        down_E[self.offsets[:-1]] = False  # a user's first event follows nothing
        _raise_at(np.add.reduceat(down_E, self.offsets[:-1]) > 0, self.first, "has timestamps that go down")

    def check_periods(self, split: Split, cuts: CutOffs) -> None:
        validation, test = split.validation, split.test
        start, stop = cuts.validation
        rules = (
            ("may train on", split.train_end_U, cuts.train_stop),
            ("is shown for validation", validation.history_stop_U, cuts.train_stop),
            ("is shown for the test", test.history_stop_U, cuts.test_history_stop),
            ("is not yet asked in the test for", test.start_U, cuts.test_start),
            ("is not yet asked in validation for", validation.start_U, start),
        )
        for what, counts, instant in rules:
            self._check_count(what, counts, instant)
        asked = np.flatnonzero(validation.asked_U)
        self._check_count("is asked in validation up to", validation.stop_U, stop, asked)

    def _check_count(self, what: str, counts_U: np.ndarray, instant: int, only: np.ndarray | None = None) -> None:
        """Hold a range [0, count) of each user to be all that is earlier than `instant`, by counting."""
        earlier_U = np.add.reduceat(self.times_E < instant, self.offsets[:-1], dtype=np.int64)
        wrong_U = earlier_U != counts_U
        if only is not None:
            unasked_U = np.ones(len(wrong_U), dtype=bool)
            unasked_U[only] = False
            wrong_U &= ~unasked_U
        _raise_at(wrong_U, self.first, f"{what} events that are not those before {instant} s")


def _raise_at(wrong_U: np.ndarray, first: int, what: str) -> None:
    if wrong_U.any():
        raise LeakageError(f"user {first + int(np.argmax(wrong_U))} {what}")


def user_blocks(offsets: np.ndarray, events: int) -> list[tuple[int, int]]:
    """Ranges of users of about `events` events each, or of one user who has more."""
    cuts = [0]
    users = len(offsets) - 1
    while cuts[-1] < users:
        wanted = int(offsets[cuts[-1]]) + events
        cuts.append(min(max(int(np.searchsorted(offsets, wanted, side="right")) - 1, cuts[-1] + 1), users))
    return list(itertools.pairwise(cuts))
