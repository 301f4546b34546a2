"""What a source of events must be able to say, so that one writer serves them all.

A source is read in two passes: first its catalogue (which items exist, in which dense order), then its
users' histories, in blocks that fit in memory. Everything it yields is checked: a source raises InputError
for a fault in its files, and the writer asserts what a source promises.

Shapes: U users in a block · E events in a block · N items · G groups (artists, albums) · D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from data import schema
from data.series.change_points import Entries
from data.series.values import SeriesValues

MAX_FAULTS_SHOWN = 10
"""A file with a thousand bad lines needs no thousand messages."""


@dataclass(frozen=True)
class Groups:
    """What groups items: artists, albums. An item belongs to none, one or several.

    Attributes:
        offsets: int64 [N + 1] into `values`; the groups of item i are those from the i-th to the next.
        values: uint32, dense group indices, ascending within an item; an empty range means "not known".
        ids: string [G], raw ids or names.
    """

    offsets: np.ndarray
    values: np.ndarray
    ids: pa.Array


@dataclass(frozen=True)
class Catalogue:
    """All items of a source in dense order, and who made them.

    Attributes:
        item_ids: string [N], raw ids.
        artists: who made each item.
        titles: string [N], or None where the source has none.
        albums: what each item was published on, or None where the source has no albums.
    """

    item_ids: pa.Array
    artists: Groups
    titles: pa.Array | None
    albums: Groups | None = None


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

    @property
    def least_bytes(self) -> int:
        """What the work will take on the disk at the least, as far as is known before it begins; 0 where nothing is."""

    def catalogue(self) -> Catalogue:
        """First pass. Called once, before the others."""

    def histories(self) -> Iterator[Histories]:
        """Second pass: each user once."""

    @property
    def embedding_width(self) -> int | None:
        """D, or None where the source has no content embeddings."""

    def embeddings(self) -> Iterator[Embeddings]:
        """Each item at most once; nothing where `embedding_width` is None."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """What was read and did not enter the store, in words, and how many of it; complete after the last pass."""


class UserSeries(Protocol):
    """What a source tells of its users beside their events: slow series. Read only where they are asked for."""

    def values(self) -> SeriesValues:
        """All values that may occur. Called once, after `Source.catalogue` and before the histories are read.

        Raises:
            InputError: a fault in the files.
        """

    def entries(self, user_ids: pa.Array, first_times: np.ndarray) -> Entries:
        """What is known of some users; values are places in `values`.

        Args:
            user_ids: string [U], as the source's histories give them; an entry's user is a place among them.
            first_times: int64 [U], the second of each user's first event.
        """


def column_bytes(num_events: int, optional_columns: Sequence[str]) -> int:
    """What the events of a store take on the disk."""
    return num_events * sum(schema.EVENT_COLUMNS[name].dtype.itemsize for name in schema.column_names(optional_columns))


def shown(faults: list[str]) -> list[str]:
    """The first faults, and a count of the rest."""
    if len(faults) <= MAX_FAULTS_SHOWN:
        return faults
    return [*faults[:MAX_FAULTS_SHOWN], f"… and {len(faults) - MAX_FAULTS_SHOWN} more"]


def groups_of_pairs(items: np.ndarray, groups: np.ndarray, ids: pa.Array, num_items: int) -> Groups:
    """Groups from (item, group) pairs of dense indices in any order; a repeated pair counts once.

    Args:
        items: integers [n] below `num_items`.
        groups: integers [n] below G.
        ids: string [G].
    """
    # One number a pair sorts and removes repeats at once; 2**64 holds far more than items times groups.
    step = np.uint64(max(len(ids), 1))
    pairs = np.unique(items.astype(np.uint64) * step + groups.astype(np.uint64))
    offsets = np.zeros(num_items + 1, dtype=np.int64)
    np.cumsum(np.bincount((pairs // step).astype(np.int64), minlength=num_items), out=offsets[1:])
    return Groups(offsets, (pairs % step).astype(np.uint32), ids)
