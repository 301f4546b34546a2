"""An event store opened for reading: checked once, then plain arrays.

The columns come out of Arrow's list columns as they are: `offsets` [U + 1] and flat values [E], so a user's
history is `column(name)[offsets[u] : offsets[u + 1]]` and a jagged batch is a handful of slices.

Shapes: U users · E events · N items · A artists · D embedding width.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.errors import InputError
from data import schema
from data.manifest import Manifest, read_manifest
from data.parquet_io import damage_told, open_parquet


class EventStore:
    """Read access to a store; make one with `EventStore.open`.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        offsets: int64 [U + 1], where each user's events begin and end in the flat columns.
    """

    def __init__(self, path: Path, manifest: Manifest, offsets: np.ndarray) -> None:
        """Take what `open` has checked."""
        self.path = path
        self.manifest = manifest
        self.offsets = offsets
        self._columns: dict[str, np.ndarray] = {}

    @staticmethod
    def open(path: Path) -> EventStore:
        """Open the store in folder `path` and check it: manifest, sizes, schemas, counts, and every history.

        Raises:
            InputError: with the faults found and their places.
        """
        path = Path(path)
        manifest = read_manifest(path)
        _check_files(path, manifest)
        return EventStore(path, manifest, _check_events(path, manifest))

    @property
    def fingerprint(self) -> str:
        """Names the store's content; artefacts made from it carry it."""
        return self.manifest.fingerprint

    @property
    def num_users(self) -> int:
        """U."""
        return self.manifest.counts["users"]

    @property
    def num_items(self) -> int:
        """N."""
        return self.manifest.counts["items"]

    @property
    def num_artists(self) -> int:
        """A."""
        return self.manifest.counts["artists"]

    @property
    def num_events(self) -> int:
        """E."""
        return self.manifest.counts["events"]

    @property
    def event_types(self) -> tuple[str, ...]:
        """Names of the event types."""
        return self.manifest.event_types

    def has_column(self, name: str) -> bool:
        """Whether the source of this store has the column (data/schema.py tells which are optional)."""
        return name in schema.REQUIRED_COLUMNS or name in self.manifest.optional_columns

    def column(self, name: str) -> np.ndarray:
        """Flat values [E] of a column, read-only, in the dtype of data/schema.py. Decoded at the first call.

        Raises:
            InputError: the file was damaged since it was written.
        """
        assert self.has_column(name), f"{self.path} has no column `{name}`; ask has_column first"
        if name not in self._columns:
            lists = self._read(schema.EVENTS_FILE, name)
            self._columns[name] = _flat(lists)
        return self._columns[name]

    @property
    def artist_offsets(self) -> np.ndarray:
        """int64 [N + 1] into `artist_values`; an empty range is an unknown artist."""
        return _offsets(self._artists)

    @property
    def artist_values(self) -> np.ndarray:
        """uint32, dense artist indices, item after item."""
        return _flat(self._artists)

    @cached_property
    def item_titles(self) -> list[str] | None:
        """Titles in dense order, None where the source has none."""
        if not self.manifest.titles:
            return None
        titles: list[str] = self._read(schema.ITEMS_FILE, schema.TITLE).to_pylist()
        return titles

    @cached_property
    def item_ids(self) -> pa.Array:
        """Raw item ids, string [N], in dense order."""
        return self._read(schema.ITEMS_FILE, schema.ITEM)

    @cached_property
    def user_ids(self) -> pa.Array:
        """Raw user ids, string [U]."""
        return self._read(schema.EVENTS_FILE, schema.USER)

    @cached_property
    def artist_ids(self) -> pa.Array:
        """Raw artist ids or names, string [A]."""
        return self._read(schema.ARTISTS_FILE, schema.ARTIST)

    def embeddings(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Content embeddings: item indices uint32 [n] and float32 [n, D]; None where the source has none."""
        if self.manifest.embedding_width is None:
            return None
        items = self._read(schema.EMBEDDINGS_FILE, schema.ITEM).to_numpy()
        vectors = self._read(schema.EMBEDDINGS_FILE, schema.EMBEDDING).values.to_numpy()
        return items, vectors.reshape(len(items), self.manifest.embedding_width)

    @cached_property
    def _artists(self) -> pa.Array:
        return self._read(schema.ITEMS_FILE, schema.ARTISTS)

    def _read(self, file: str, column: str) -> pa.Array:
        path = self.path / file
        with damage_told(path, f"column `{column}`"):
            return open_parquet(path).read(columns=[column]).column(column).combine_chunks()


def _offsets(lists: pa.Array) -> np.ndarray:
    offsets: np.ndarray = lists.offsets.to_numpy(zero_copy_only=True)
    return offsets


def _flat(lists: pa.Array) -> np.ndarray:
    values: np.ndarray = lists.values.to_numpy(zero_copy_only=True)
    assert lists.offset == 0
    assert len(values) == int(lists.offsets[-1].as_py())
    return values


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Sizes as in the manifest, schemas as in data/schema.py, row counts as in the manifest."""
    expected = {
        schema.EVENTS_FILE: (schema.events_schema(manifest.optional_columns), manifest.counts["users"]),
        schema.ITEMS_FILE: (schema.items_schema(manifest.titles), manifest.counts["items"]),
        schema.ARTISTS_FILE: (schema.artists_schema(), manifest.counts["artists"]),
    }
    if manifest.embedding_width is not None:
        rows = manifest.counts["embeddings"]
        expected[schema.EMBEDDINGS_FILE] = (schema.embeddings_schema(manifest.embedding_width), rows)
    faults: list[str] = []
    for name, (arrow_schema, rows) in expected.items():
        try:
            _check_file(folder / name, manifest.files[name]["bytes"], arrow_schema, rows)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)


def _check_file(path: Path, size: int, arrow_schema: pa.Schema, rows: int) -> None:
    if not path.exists():
        raise InputError(f"{path}: missing, though the store's manifest lists it; prepare the store again")
    if path.stat().st_size != size:
        raise InputError(
            f"{path}: has {path.stat().st_size} bytes, the store's manifest says {size}: cut short or replaced; "
            "prepare the store again"
        )
    file = open_parquet(path)
    if not file.schema_arrow.equals(arrow_schema):
        found = ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
        wanted = ", ".join(f"{field.name}: {field.type}" for field in arrow_schema)
        raise InputError(f"{path}: has columns [{found}], expected [{wanted}]; prepare the store again")
    if file.metadata.num_rows != rows:
        raise InputError(
            f"{path}: has {file.metadata.num_rows} rows, the store's manifest says {rows}; prepare the store again"
        )


def _check_events(folder: Path, manifest: Manifest) -> np.ndarray:
    """Check every history, row group by row group in bounded memory; return the offsets of all users."""
    path = folder / schema.EVENTS_FILE
    file = open_parquet(path)
    parts = []
    for group in range(file.num_row_groups):
        place = f"row group {group}"
        with damage_told(path, place):
            table = file.read_row_group(group)
        parts.append(_check_histories(f"{path}: {place}", table, manifest))
    lengths = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] != manifest.counts["events"]:
        raise InputError(
            f"{path}: holds {offsets[-1]} events, the store's manifest says {manifest.counts['events']}; "
            "prepare the store again"
        )
    return offsets


def _check_histories(place: str, table: pa.Table, manifest: Manifest) -> np.ndarray:
    """Check one row group; return its users' history lengths."""
    columns = {name: table.column(name).combine_chunks() for name in table.column_names if name != schema.USER}
    offsets = _offsets(columns[schema.ITEM])
    for name, lists in columns.items():
        if not np.array_equal(_offsets(lists), offsets):
            differing = np.diff(_offsets(lists)) != np.diff(offsets)
            row = int(np.flatnonzero(differing)[0])
            raise InputError(
                f"{place}, row {row}: list `{name}` has {np.diff(_offsets(lists))[row]} values, `{schema.ITEM}` has "
                f"{np.diff(offsets)[row]}: the lists of a user must be equally long; prepare the store again"
            )
    faults = _value_faults(place, columns, offsets, manifest)
    if faults:
        raise InputError(*faults)
    return np.diff(offsets)


def _value_faults(place: str, columns: dict[str, pa.Array], offsets: np.ndarray, manifest: Manifest) -> list[str]:
    items, types = _flat(columns[schema.ITEM]), _flat(columns[schema.EVENT_TYPE])
    times = _flat(columns[schema.TIMESTAMP])
    going_down = np.zeros(len(times), dtype=bool)
    going_down[1:] = times[1:] < times[:-1]
    going_down[offsets[:-1][np.diff(offsets) > 0]] = False  # a user's first event follows nothing
    num_items, num_types = manifest.counts["items"], len(manifest.event_types)
    rules = [
        (schema.ITEM, items >= num_items, items, f"items are numbered below {num_items}"),
        (schema.EVENT_TYPE, types >= num_types, types, f"event types are numbered below {num_types}"),
        (schema.TIMESTAMP, times < 0, times, "timestamps are never negative"),
        (schema.TIMESTAMP, going_down, times, "a user's timestamps must not go down"),
    ]
    faults = []
    for name, broken, values, rule in rules:
        if broken.any():
            event = int(np.argmax(broken))
            row = int(np.searchsorted(offsets, event, side="right")) - 1
            faults.append(
                f"{place}, row {row}, event {event - int(offsets[row])}: `{name}` is {values[event]}; {rule}; "
                "prepare the store again"
            )
    return faults
