"""The shape of an event store: the only place where column names, dtypes, units and missing values are set.

A store is a folder and a manifest. `events/` is a jagged table, one row a user: `offsets.npy` says where each user's
events begin, and every column is one flat file of values, user after user, each user's oldest event first. These are
files of NumPy's format, mapped into memory as they are: nothing is decoded or copied to cut a batch, all processes of a
machine share one copy in the page cache, and a store may be larger than the memory. `EventStore.to_arrow` shows the
same buffers as one Arrow row per user. `embeddings/`, where the source has content embeddings, holds the dense indices
of the items that have one, in any order, and their vectors, as such files too. `users.parquet`, `items.parquet`,
`artists.parquet` and, where there are albums, `albums.parquet` describe users and catalogue in dense order.

Where slow series were asked for, `series/` is a second jagged table, of a user's slowly changing states (a gender, a
subscription, the artist preferred in the last month): an entry is the instant from which a value holds, and a user's
entries strictly ascend by time, those of one instant by the order of their series. `series.parquet` describes the
values of all series, which are numbered together.

Raw ids (users, items, artists) are kept as strings: every source's ids fit without loss, and nothing
after preparation computes with them; all else speaks of dense indices 0, 1, 2, ….
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT_VERSION = 2
"""Raised when a store of the former version cannot be read any more."""

QR_REMAINDERS = 1024
"""R of the quotient-remainder artist embedding: artist `id` is the pair (id // R, id % R)."""

MISSING_DURATION = 2**32 - 1
MISSING_ORGANIC = 2
MISSING_PLAYED_RATIO = 65535

MANIFEST_FILE = "manifest.json"
EVENTS_FOLDER = "events"
USERS_FILE = "users.parquet"
ITEMS_FILE = "items.parquet"
ARTISTS_FILE = "artists.parquet"
ALBUMS_FILE = "albums.parquet"
EMBEDDINGS_FOLDER = "embeddings"
EMBEDDED_ITEMS_FILE = f"{EMBEDDINGS_FOLDER}/item.npy"
VECTORS_FILE = f"{EMBEDDINGS_FOLDER}/vector.npy"
EMBEDDED_ITEM_DTYPE = np.dtype(np.uint32)
VECTOR_DTYPE = np.dtype(np.float32)

OFFSETS = "offsets"
USER = "user"
ITEM = "item"
TIMESTAMP = "timestamp"
EVENT_TYPE = "event_type"
DURATION = "duration"
ORGANIC = "organic"
PLAYED_RATIO = "played_ratio"
ARTIST = "artist"
ARTISTS = "artists"
ALBUM = "album"
ALBUMS = "albums"
TITLE = "title"

MAX_EVENT_TYPES = 256
MAX_SERIES = 255
"""So that how many of them a user has fits into a byte."""
MAX_SERIES_VALUES = 2**20
"""Of series that a source gives, over all of them: each value is a row of a table. Artists are rows already."""

SERIES_FILE = "series.parquet"
SERIES_FOLDER = "series"
SERIES = "series"
VALUE = "value"
SERIES_ENTRIES = "series_entries"
"""Among the manifest's counts, in stores with series."""
UNKNOWN_VALUE = "unknown"
"""The text of the value that says that nothing is known any more."""


@dataclass(frozen=True)
class EventColumn:
    """One value per event.

    Attributes:
        dtype: how it is stored, in NumPy's terms.
        missing: the value that stands for "not known"; None where every event has the value.
        meaning: what it says, with its unit.
    """

    name: str
    dtype: np.dtype[Any]
    missing: int | None
    meaning: str


EVENT_COLUMNS = {
    column.name: column
    for column in (
        EventColumn(ITEM, np.dtype(np.uint32), None, "dense item index, 0 … N-1"),
        EventColumn(TIMESTAMP, np.dtype(np.uint32), None, "whole seconds since the source's origin, below 2**32"),
        EventColumn(EVENT_TYPE, np.dtype(np.uint8), None, "index into the manifest's event types"),
        EventColumn(DURATION, np.dtype(np.uint32), MISSING_DURATION, "length of the item in seconds"),
        EventColumn(ORGANIC, np.dtype(np.uint8), MISSING_ORGANIC, "1 found by the user, 0 recommended"),
        EventColumn(
            PLAYED_RATIO, np.dtype(np.uint16), MISSING_PLAYED_RATIO, "percent of the item played; rewinds exceed 100"
        ),
    )
}

SERIES_COLUMNS: dict[str, np.dtype[Any]] = {TIMESTAMP: np.dtype(np.uint32), VALUE: np.dtype(np.uint32)}
"""One value per entry: the second from which on it holds, as the events' timestamps, and the number of the value."""

REQUIRED_COLUMNS = (ITEM, TIMESTAMP, EVENT_TYPE)
OPTIONAL_COLUMNS = (DURATION, ORGANIC, PLAYED_RATIO)


def column_file(name: str) -> str:
    """Path of an event column, or of the offsets, within a store."""
    return f"{EVENTS_FOLDER}/{name}.npy"


def series_file(name: str) -> str:
    """Path of a column of the series, or of their offsets, within a store."""
    return f"{SERIES_FOLDER}/{name}.npy"


def column_names(optional: Sequence[str]) -> tuple[str, ...]:
    """The event columns of a store with the given optional ones, in the order in which they are described here."""
    return REQUIRED_COLUMNS + tuple(name for name in OPTIONAL_COLUMNS if name in optional)


def users_schema() -> pa.Schema:
    """Arrow schema of `users.parquet`: row u is the user with dense index u."""
    return pa.schema([pa.field(USER, pa.string(), nullable=False)])


def _list_of(dtype: pa.DataType) -> pa.DataType:
    return pa.large_list(pa.field("element", dtype, nullable=False))


def items_schema(with_titles: bool, with_albums: bool) -> pa.Schema:
    """Arrow schema of `items.parquet`: row i is the item with dense index i."""
    fields = [
        pa.field(ITEM, pa.string(), nullable=False),
        pa.field(ARTISTS, _list_of(pa.uint32()), nullable=False),
    ]
    if with_albums:
        fields.append(pa.field(ALBUMS, _list_of(pa.uint32()), nullable=False))
    if with_titles:
        fields.append(pa.field(TITLE, pa.string(), nullable=False))
    return pa.schema(fields)


def artists_schema() -> pa.Schema:
    """Arrow schema of `artists.parquet`: row i is the artist with dense index i."""
    return pa.schema([pa.field(ARTIST, pa.string(), nullable=False)])


def albums_schema() -> pa.Schema:
    """Arrow schema of `albums.parquet`: row i is the album with dense index i."""
    return pa.schema([pa.field(ALBUM, pa.string(), nullable=False)])


def series_schema() -> pa.Schema:
    """Arrow schema of `series.parquet`: row v is the value with number v, those of a series together.

    `artist` is its dense index where the value is an artist, else null.
    """
    return pa.schema(
        [
            pa.field(SERIES, pa.string(), nullable=False),
            pa.field(VALUE, pa.string(), nullable=False),
            pa.field(ARTIST, pa.uint32()),
        ]
    )
