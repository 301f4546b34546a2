"""What a source of events must be able to say, so that one writer serves them all.

A source is read in two passes: first its catalogue (which items exist, in which dense order), then its
users' histories, in blocks that fit in memory. Everything it yields is checked: a source raises InputError
for a fault in its files, and the writer asserts what a source promises.

Shapes: U users in a block · E events in a block · N items · A artists · D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

MAX_FAULTS_SHOWN = 10
"""A file with a thousand bad lines needs no thousand messages."""


@dataclass(frozen=True)
class Catalogue:
    """All items of a source in dense order, and who made them.

    Attributes:
        item_ids: string [N], raw ids.
        artist_offsets: int64 [N + 1] into `artist_values`; the artists of item i are those from the i-th to the next.
        artist_values: uint32, dense artist indices, ascending within an item; an empty range is an unknown artist.
        artist_ids: string [A], raw ids or names.
        titles: string [N], or None where the source has none.
    """

    item_ids: pa.Array
    artist_offsets: np.ndarray
    artist_values: np.ndarray
    artist_ids: pa.Array
    titles: pa.Array | None


@dataclass(frozen=True)
class Histories:
    """The whole histories of some users, oldest event first.

    Attributes:
        user_ids: string [U], raw ids.
        offsets: int64 [U + 1]; every user has at least one event.
        columns: column name → values [E] in the dtypes of data/schema.py.
    """

    user_ids: pa.Array
    offsets: np.ndarray
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Embeddings:
    """Content embeddings of some items: dense index uint32 [n] and float32 [n, D]."""

    items: np.ndarray
    vectors: np.ndarray


class Source(Protocol):
    """An event log."""

    @property
    def description(self) -> Mapping[str, str]:
        """What the manifest says of the origin: equal content, equal description (no paths, no dates)."""

    @property
    def event_types(self) -> tuple[str, ...]:
        """Names of the event types; an event holds an index into them."""

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """Which of the schema's optional columns the source has."""

    @property
    def num_events(self) -> int:
        """How many events will be yielded, for progress."""

    def catalogue(self) -> Catalogue:
        """First pass. Called once, before the others."""

    def histories(self) -> Iterator[Histories]:
        """Second pass: each user once."""

    @property
    def embedding_width(self) -> int | None:
        """D, or None where the source has no content embeddings."""

    def embeddings(self) -> Iterator[Embeddings]:
        """Each item at most once; nothing where `embedding_width` is None."""


def shown(faults: list[str]) -> list[str]:
    """The first faults, and a count of the rest."""
    if len(faults) <= MAX_FAULTS_SHOWN:
        return faults
    return [*faults[:MAX_FAULTS_SHOWN], f"… and {len(faults) - MAX_FAULTS_SHOWN} more"]


def run_starts(keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Positions at which a run of equal keys begins: `[7, 7, 9]` → `[0, 2]`."""
    if len(keys) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
