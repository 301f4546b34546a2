"""What a baseline may learn from: the training events of a store, and no others.

U users · E training events · S events of the whole store, held-out ones among them · N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from data.event_store import EventStore
from data.leakage import user_blocks
from data.ranges import positions_of
from data.schema import ITEM, TIMESTAMP

BLOCK_EVENTS = 2**21

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TrainingBlock:
    """The training events of some users, user by user in time order."""

    users_E: Ints
    items_E: Ints
    times_E: Ints


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """The training events of a store, read a block of whole users at a time.

    Blocks are cut by training events, so that a held-out event moves nothing, not even the order in which numbers are
    added.

    Args:
        items_S, times_S: of all events; `blocks` reads those of training.
        starts_U: where each user's first event stands among them.
        lengths_U: how many events of each user, from the first on, are training.
        num_items: N.
    """

    items_S: npt.NDArray[np.uint32]
    times_S: npt.NDArray[np.uint32]
    starts_U: Ints
    lengths_U: Ints
    num_items: int

    @property
    def num_users(self) -> int:
        """U, users without a training event among them."""
        return len(self.lengths_U)

    @cached_property
    def num_events(self) -> int:
        """E."""
        return int(self.lengths_U.sum())

    @cached_property
    def plays_N(self) -> Ints:
        """Training events of each item."""
        plays_N = np.zeros(self.num_items, np.int64)
        for block in self.blocks():
            plays_N += np.bincount(block.items_E, minlength=self.num_items)
        return plays_N

    @cached_property
    def end(self) -> int:
        """Time of the last training event, seconds."""
        learnt_U = self.lengths_U > 0
        return int(self.times_S[self.starts_U[learnt_U] + self.lengths_U[learnt_U] - 1].max())

    def blocks(self, events: int = BLOCK_EVENTS) -> Iterator[TrainingBlock]:
        """Blocks of whole users of about so many training events, or of one user who has more."""
        for first, last in user_blocks(np.append(0, np.cumsum(self.lengths_U)), events):
            lengths = self.lengths_U[first:last]
            at_E = positions_of(self.starts_U[first:last], lengths)
            yield TrainingBlock(
                np.repeat(np.arange(first, last), lengths),
                self.items_S[at_E].astype(np.int64),
                self.times_S[at_E].astype(np.int64),
            )


def training_log(store: EventStore) -> TrainingLog:
    """The events that the store's split gives to training; what is held out is left out here, once for all.

    Raises:
        InputError: there is none.
    """
    lengths_U = store.split().train_end_U.astype(np.int64)
    log = TrainingLog(
        store.column(ITEM), store.column(TIMESTAMP), np.asarray(store.offsets[:-1]), lengths_U, store.num_items
    )
    if not log.num_events:
        raise InputError(
            f"{store.path}: its split, {store.split_config.kind}, leaves no event to train on, and a baseline is fitted"
            " on training events; prepare the store with shorter held-out periods"
        )
    return log
