"""A log written out event by event, so that what is counted in its store can be counted by hand.

U users · E events · N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from data import schema
from data.event_store import EventStore
from data.sources.base import Catalogue, Embeddings, Groups, Histories
from data.store_writer import write_event_store

WIDTH = 2


class Event(NamedTuple):
    """One event; None is not known."""

    item: int
    timestamp: int
    event_type: int = 0
    duration: int | None = None
    organic: int | None = None
    played_ratio: int | None = None


@dataclass
class WrittenLog:
    """A source; `embedded` are the items with an embedding, None where there are none at all."""

    users: Sequence[Sequence[Event]]
    artists_N: Sequence[Sequence[int]]
    albums_N: Sequence[Sequence[int]] | None = None
    embedded: Sequence[int] | None = None
    optional_columns: tuple[str, ...] = schema.OPTIONAL_COLUMNS
    event_types: tuple[str, ...] = ("listen", "like")
    description: dict[str, str] = field(default_factory=lambda: {"name": "written"})
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def num_events(self) -> int:
        return sum(map(len, self.users))

    @property
    def embedding_width(self) -> int | None:
        return None if self.embedded is None else WIDTH

    def catalogue(self) -> Catalogue:
        return Catalogue(
            item_ids=pa.array([str(item) for item in range(len(self.artists_N))], type=pa.string()),
            artists=_groups(self.artists_N),
            albums=None if self.albums_N is None else _groups(self.albums_N),
            titles=None,
        )

    def histories(self) -> Iterator[Histories]:
        events = [event for user in self.users for event in user]
        columns = {}
        for name in (*schema.REQUIRED_COLUMNS, *self.optional_columns):
            column = schema.EVENT_COLUMNS[name]
            values = [getattr(event, name) for event in events]
            columns[name] = np.array([column.missing if value is None else value for value in values], column.dtype)
        user_ids = pa.array([str(user) for user in range(len(self.users))], type=pa.string())
        yield Histories(user_ids, np.cumsum([0, *map(len, self.users)]), columns)

    def embeddings(self) -> Iterator[Embeddings]:
        if self.embedded is not None:
            items = np.array(self.embedded, dtype=np.uint32)
            yield Embeddings(items, np.ones((len(items), WIDTH), dtype=np.float32))

    def store(self, folder: Path) -> EventStore:
        """Write the store `folder` and open it."""
        write_event_store(self, folder)
        return EventStore.open(folder)


def _groups(groups_N: Sequence[Sequence[int]]) -> Groups:
    values = [group for groups in groups_N for group in groups]
    names = [f"group-{group}" for group in range(max(values, default=-1) + 1)]
    return Groups(
        np.cumsum([0, *map(len, groups_N)]), np.array(values, dtype=np.uint32), pa.array(names, type=pa.string())
    )


def optional(values: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.none() | values


@st.composite
def written_logs(draw: st.DrawFn) -> WrittenLog:
    """Small logs with ties, gaps of seconds and of days, and everything that may lack."""
    num_items = draw(st.integers(1, 6))
    events = st.builds(
        Event,
        item=st.integers(0, num_items - 1),
        # Gaps of few kinds, so that ties, half hours to the second and days are all common.
        timestamp=st.sampled_from([0, 0, 1, 2, 3, 4, 1799, 1800, 1801, 7000, 90_000, 1_000_000]),
        event_type=st.integers(0, 1),
        duration=optional(st.integers(0, 600)),
        organic=optional(st.integers(0, 1)),
        played_ratio=optional(st.sampled_from([0, 9, 10, 49, 50, 100, 199, 200, 60_000])),
    )
    users = []
    for gaps in draw(st.lists(st.lists(events, min_size=1, max_size=9), min_size=1, max_size=6)):
        time, user = 0, []
        for event in gaps:
            time += event.timestamp
            user.append(event._replace(timestamp=time))
        users.append(user)
    groups = st.lists(
        st.lists(st.integers(0, 6), unique=True, max_size=6).map(sorted), min_size=num_items, max_size=num_items
    )
    return WrittenLog(
        users,
        artists_N=draw(groups),
        albums_N=draw(st.none() | groups),
        embedded=draw(st.none() | st.lists(st.integers(0, num_items - 1), unique=True)),
        optional_columns=draw(st.sampled_from([(), (schema.ORGANIC,), schema.OPTIONAL_COLUMNS])),
    )
