"""The shape of an event store: the only place where column names, dtypes, units and missing values are set.

A store is a folder of Parquet files and a manifest. `events.parquet` has one row per user, whose history
lies in list columns of equal length, oldest event first: an Arrow list column is a jagged tensor already
(values and offsets), so batches are cut from it without parsing. `items.parquet`, `artists.parquet` and,
where the source has content embeddings, `embeddings.parquet` describe the catalogue in dense order.

Raw ids (users, items, artists) are kept as strings: every source's ids fit without loss, and nothing
after preparation computes with them; all else speaks of dense indices 0, 1, 2, ….
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT_VERSION = 1
"""Raised when a store of the former version cannot be read any more."""

QR_REMAINDERS = 1024
"""R of the quotient-remainder artist embedding: artist `id` is the pair (id // R, id % R)."""

MISSING_DURATION = 2**32 - 1
MISSING_ORGANIC = 2
MISSING_PLAYED_RATIO = 65535

MANIFEST_FILE = "manifest.json"
EVENTS_FILE = "events.parquet"
ITEMS_FILE = "items.parquet"
ARTISTS_FILE = "artists.parquet"
EMBEDDINGS_FILE = "embeddings.parquet"

USER = "user"
ITEM = "item"
TIMESTAMP = "timestamp"
EVENT_TYPE = "event_type"
DURATION = "duration"
ORGANIC = "organic"
PLAYED_RATIO = "played_ratio"
ARTIST = "artist"
ARTISTS = "artists"
TITLE = "title"
EMBEDDING = "embedding"

MAX_EVENT_TYPES = 256
MAX_ITEMS = 2**32 - 1


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
        EventColumn(TIMESTAMP, np.dtype(np.int64), None, "seconds since the source's origin, never negative"),
        EventColumn(EVENT_TYPE, np.dtype(np.uint8), None, "index into the manifest's event types"),
        EventColumn(DURATION, np.dtype(np.uint32), MISSING_DURATION, "length of the item in seconds"),
        EventColumn(ORGANIC, np.dtype(np.uint8), MISSING_ORGANIC, "1 found by the user, 0 recommended"),
        EventColumn(
            PLAYED_RATIO, np.dtype(np.uint16), MISSING_PLAYED_RATIO, "percent of the item played; rewinds exceed 100"
        ),
    )
}

REQUIRED_COLUMNS = (ITEM, TIMESTAMP, EVENT_TYPE)
OPTIONAL_COLUMNS = (DURATION, ORGANIC, PLAYED_RATIO)


def _list_of(dtype: pa.DataType) -> pa.DataType:
    """Large lists: 64-bit offsets, since a store may hold more events than 2**31."""
    return pa.large_list(pa.field("element", dtype, nullable=False))


def events_schema(optional: Sequence[str]) -> pa.Schema:
    """Arrow schema of `events.parquet` with the given optional columns, in the order of `OPTIONAL_COLUMNS`."""
    names = REQUIRED_COLUMNS + tuple(name for name in OPTIONAL_COLUMNS if name in optional)
    fields = [pa.field(USER, pa.string(), nullable=False)]
    for name in names:
        element = pa.from_numpy_dtype(EVENT_COLUMNS[name].dtype)
        fields.append(pa.field(name, _list_of(element), nullable=False))
    return pa.schema(fields)


def items_schema(with_titles: bool) -> pa.Schema:
    """Arrow schema of `items.parquet`: row i is the item with dense index i."""
    fields = [
        pa.field(ITEM, pa.string(), nullable=False),
        pa.field(ARTISTS, _list_of(pa.uint32()), nullable=False),
    ]
    if with_titles:
        fields.append(pa.field(TITLE, pa.string(), nullable=False))
    return pa.schema(fields)


def artists_schema() -> pa.Schema:
    """Arrow schema of `artists.parquet`: row i is the artist with dense index i."""
    return pa.schema([pa.field(ARTIST, pa.string(), nullable=False)])


def embeddings_schema(width: int) -> pa.Schema:
    """Arrow schema of `embeddings.parquet`: one row for each item that has an embedding, in any order."""
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), width)
    return pa.schema([pa.field(ITEM, pa.uint32(), nullable=False), pa.field(EMBEDDING, vector, nullable=False)])
