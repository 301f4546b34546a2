"""What of a store may be learnt from, a block of whole users at a time.

The leakage rule: item vectors and baselines are functions of TRAINING events alone (positions below `train_end`,
data/split.py) and of what is known of an item beforehand. Blocks are cut by training events as well, so that a held-out
event moves nothing, not even the order in which numbers are added.

U users · E training events of a block · S events of the whole store, held-out ones among them · N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data.event_store import EventStore
from data.leakage import user_blocks
from data.ranges import positions_of
from data.schema import ITEM

BLOCK_EVENTS = 2**21


@dataclass(frozen=True, eq=False)
class EventBlock:
    """The training events of some users, user by user in time order."""

    users_E: npt.NDArray[np.int64]
    items_E: npt.NDArray[np.int64]
    at_E: npt.NDArray[np.int64]
    """Their positions in the columns of the store."""


@dataclass(frozen=True, eq=False)
class TrainingEvents:
    """The training events of a store; memory holds a few numbers a user and one block of events."""

    items_S: npt.NDArray[np.uint32]
    """Items of all events; `blocks` reads those of training."""
    starts_U: npt.NDArray[np.int64]
    """Where each user's first event stands in `items_S`."""
    lengths_U: npt.NDArray[np.int64]
    """How many events of each user, from the first on, are training."""
    num_items: int

    @property
    def num_users(self) -> int:
        """U, users without a training event among them."""
        return len(self.lengths_U)

    @cached_property
    def num_events(self) -> int:
        """Training events of all users."""
        return int(self.lengths_U.sum())

    @cached_property
    def plays_N(self) -> npt.NDArray[np.int64]:
        """Training events of each item."""
        plays_N = np.zeros(self.num_items, np.int64)
        for block in self.blocks():
            plays_N += np.bincount(block.items_E, minlength=self.num_items)
        return plays_N

    def blocks(self, events: int = BLOCK_EVENTS) -> Iterator[EventBlock]:
        """Blocks of whole users of about so many training events, or of one user who has more."""
        ends_U = np.cumsum(self.lengths_U)
        for first, last in user_blocks(np.append(0, ends_U), events):
            lengths = self.lengths_U[first:last]
            at_E = positions_of(self.starts_U[first:last], lengths)
            yield EventBlock(np.repeat(np.arange(first, last), lengths), self.items_S[at_E].astype(np.int64), at_E)


def training_events(store: EventStore) -> TrainingEvents:
    """The events that the store's split gives to training; what is held out is left out here, once for all."""
    train_end_U = store.split().train_end_U.astype(np.int64)
    return TrainingEvents(store.column(ITEM), np.asarray(store.offsets[:-1]), train_end_U, store.num_items)
