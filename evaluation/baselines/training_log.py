"""What a baseline may learn from: the training events of a store, and no others, with their times.

U users · S events of the whole store, held-out ones among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from data.event_store import EventStore
from data.schema import TIMESTAMP
from data.training_events import TrainingEvents, training_events


@dataclass(frozen=True, eq=False)
class TrainingLog(TrainingEvents):
    """The training events of a store, read a block of whole users at a time."""

    times_S: npt.NDArray[np.uint32]
    """Times of all events, seconds; a block says where its own stand."""

    @cached_property
    def end(self) -> int:
        """Time of the last training event, seconds."""
        learnt_U = self.lengths_U > 0
        return int(self.times_S[self.starts_U[learnt_U] + self.lengths_U[learnt_U] - 1].max())


def training_log(store: EventStore) -> TrainingLog:
    """The events that the store's split gives to training.

    Raises:
        InputError: there is none.
    """
    events = training_events(store)
    if not events.num_events:
        raise InputError(
            f"{store.path}: its split, {store.split_config.kind}, leaves no event to train on, and a baseline is fitted"
            " on training events; prepare the store with shorter held-out periods"
        )
    return TrainingLog(events.items_S, events.starts_U, events.lengths_U, events.num_items, store.column(TIMESTAMP))
