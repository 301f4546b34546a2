"""An event store opened for reading: checked once, then plain arrays mapped from its files.

A user's history is `column(name)[offsets[u] : offsets[u + 1]]`, and a jagged batch is a handful of slices.

Shapes: U users · E events · N items · A artists · D embedding width.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.config import from_plain
from common.errors import InputError
from data import schema
from data.column_files import open_column
from data.leakage import user_blocks
from data.manifest import Manifest, describe_files, read_manifest
from data.parquet_io import damage_told, open_parquet
from data.series.columns import SeriesColumns, num_values, open_series, series_faults
from data.split import Split, SplitConfig, make_split

_BLOCK_EVENTS = 2**21


class EventStore:
    """Read access to a store; make one with `EventStore.open`.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        offsets: int64 [U + 1], where each user's events begin and end in the flat columns.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Map the columns."""
        self.path = path
        self.manifest = manifest
        self.offsets = open_column(
            path / schema.column_file(schema.OFFSETS), np.dtype(np.int64), manifest.counts["users"] + 1
        )
        self._columns = {
            name: open_column(
                path / schema.column_file(name), schema.EVENT_COLUMNS[name].dtype, manifest.counts["events"]
            )
            for name in schema.column_names(manifest.optional_columns)
        }

    @staticmethod
    def open(path: Path, verify: bool = True) -> EventStore:
        """Open the store in folder `path`.

        Args:
            verify: read every file once and compare it with its SHA-256, and every history with the schema's rules;
                about a second a gigabyte. Without it manifest, sizes and shapes are checked alone: for the second
                process that opens a store on a machine.

        Raises:
            InputError: with the faults found and their places.
        """
        path = Path(path)
        manifest = read_manifest(path)
        _check_files(path, manifest)
        if verify:
            _check_sums(path, manifest)
        store = EventStore(path, manifest)
        if verify:
            faults = _event_faults(store)
            faults += series_faults(path, manifest) if store.has_series else []
            if faults:
                raise InputError(*faults)
        return store

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
        """Flat values [E] of a column in the dtype of data/schema.py, read-only, mapped from its file."""
        assert self.has_column(name), f"{self.path} has no column `{name}`; ask has_column first"
        return self._columns[name]

    @property
    def has_series(self) -> bool:
        """Whether the store was prepared with slow series."""
        return bool(self.manifest.series)

    @cached_property
    def series(self) -> SeriesColumns:
        """The slow series, mapped from their files."""
        assert self.has_series, f"{self.path} has no series; ask has_series first"
        return open_series(self.path, self.manifest)

    @property
    def split_config(self) -> SplitConfig:
        """Which events are held out, as the store was prepared."""
        return from_plain(SplitConfig, self.manifest.split, str(self.path / schema.MANIFEST_FILE))

    def split(self) -> Split:
        """What may be learnt from each user, and what is held out."""
        return make_split(self.split_config, self.offsets, self.column(schema.TIMESTAMP))

    def to_arrow(self) -> pa.Table:
        """The events as Arrow shows them: one row a user, every column a list, on the mapped buffers without a copy."""
        offsets = pa.array(self.offsets)
        lists = {name: pa.LargeListArray.from_arrays(offsets, pa.array(self.column(name))) for name in self._columns}
        return pa.table({schema.USER: self.user_ids, **lists})

    @property
    def artist_offsets(self) -> np.ndarray:
        """int64 [N + 1] into `artist_values`; an empty range is an unknown artist."""
        return _offsets(self._artists)

    @property
    def artist_values(self) -> np.ndarray:
        """uint32, dense artist indices, item after item."""
        return _flat(self._artists)

    @property
    def album_offsets(self) -> np.ndarray:
        """int64 [N + 1] into `album_values`; only where the manifest says that there are albums."""
        return _offsets(self._albums)

    @property
    def album_values(self) -> np.ndarray:
        """uint32, dense album indices, item after item."""
        return _flat(self._albums)

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
        return self._read(schema.USERS_FILE, schema.USER)

    @cached_property
    def artist_ids(self) -> pa.Array:
        """Raw artist ids or names, string [A]."""
        return self._read(schema.ARTISTS_FILE, schema.ARTIST)

    def embeddings(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Content embeddings, mapped from their files: item indices uint32 [n] and float32 [n, D]; None without any."""
        width, count = self.manifest.embedding_width, self.manifest.counts["embeddings"]
        if width is None:
            return None
        items = open_column(self.path / schema.EMBEDDED_ITEMS_FILE, schema.EMBEDDED_ITEM_DTYPE, count)
        return items, open_column(self.path / schema.VECTORS_FILE, schema.VECTOR_DTYPE, count, width)

    @cached_property
    def _artists(self) -> pa.Array:
        return self._read(schema.ITEMS_FILE, schema.ARTISTS)

    @cached_property
    def _albums(self) -> pa.Array:
        return self._read(schema.ITEMS_FILE, schema.ALBUMS)

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
    """Sizes as in the manifest; schemas as in data/schema.py and row counts as in the manifest, where Parquet."""
    counts = manifest.counts
    parquet = {
        schema.USERS_FILE: (schema.users_schema(), counts["users"]),
        schema.ITEMS_FILE: (schema.items_schema(manifest.titles, manifest.albums), counts["items"]),
        schema.ARTISTS_FILE: (schema.artists_schema(), counts["artists"]),
    }
    if manifest.albums:
        parquet[schema.ALBUMS_FILE] = schema.albums_schema(), counts["albums"]
    mapped = [schema.column_file(name) for name in (schema.OFFSETS, *schema.column_names(manifest.optional_columns))]
    if manifest.embedding_width is not None:
        mapped += [schema.EMBEDDED_ITEMS_FILE, schema.VECTORS_FILE]
    if manifest.series:
        parquet[schema.SERIES_FILE] = schema.series_schema(), num_values(manifest)
        mapped += map(schema.series_file, (schema.OFFSETS, *schema.SERIES_COLUMNS))
    faults: list[str] = []
    for name in (*parquet, *mapped):
        try:
            _check_size(folder / name, manifest.files.get(name, {}).get("bytes"))
            if name in parquet:
                _check_parquet(folder / name, *parquet[name])
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)


def _check_size(path: Path, size: int | None) -> None:
    if not path.exists():
        raise InputError(f"{path}: missing, though a store must have it; prepare the store again")
    if path.stat().st_size != size:
        raise InputError(
            f"{path}: has {path.stat().st_size} bytes, the store's manifest says {size}: cut short or replaced; "
            "prepare the store again"
        )


def _check_parquet(path: Path, arrow_schema: pa.Schema, rows: int) -> None:
    file = open_parquet(path)
    if not file.schema_arrow.equals(arrow_schema):
        found = ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
        wanted = ", ".join(f"{field.name}: {field.type}" for field in arrow_schema)
        raise InputError(f"{path}: has columns [{found}], expected [{wanted}]; prepare the store again")
    if file.metadata.num_rows != rows:
        raise InputError(
            f"{path}: has {file.metadata.num_rows} rows, the store's manifest says {rows}; prepare the store again"
        )


def _check_sums(folder: Path, manifest: Manifest) -> None:
    found = describe_files(folder, tuple(manifest.files))
    faults = [
        f"{folder / name}: its content has SHA-256 {found[name]['sha256'][:16]}…, the store's manifest says "
        f"{entry['sha256'][:16]}…: it was damaged or changed after it was written; prepare the store again"
        for name, entry in manifest.files.items()
        if found[name]["sha256"] != entry["sha256"]
    ]
    if faults:
        raise InputError(*faults)


def _event_faults(store: EventStore) -> list[str]:
    """Hold the offsets and every history to the rules of data/schema.py, a block of users at a time."""
    offsets, path = store.offsets, store.path / schema.column_file(schema.OFFSETS)
    if offsets[0] != 0 or offsets[-1] != store.num_events or (np.diff(offsets) < 1).any():
        return [
            f"{path}: must rise from 0 to the {store.num_events} events of the store, with at least one event a user; "
            "prepare the store again"
        ]
    for first, last in user_blocks(offsets, _BLOCK_EVENTS):
        faults = _value_faults(store, first, last)
        if faults:
            return faults
    return []


def _value_faults(store: EventStore, first: int, last: int) -> list[str]:
    """The first event of users [first, last) that breaks each rule."""
    begin, end = int(store.offsets[first]), int(store.offsets[last])
    items, types = store.column(schema.ITEM)[begin:end], store.column(schema.EVENT_TYPE)[begin:end]
    times = store.column(schema.TIMESTAMP)[begin:end]
    going_down = np.zeros(len(times), dtype=bool)
    going_down[1:] = times[1:] < times[:-1]
    going_down[store.offsets[first:last] - begin] = False  # a user's first event follows nothing
    num_items, num_types = store.num_items, len(store.event_types)
    rules = [
        (schema.ITEM, items >= num_items, items, f"items are numbered below {num_items}"),
        (schema.EVENT_TYPE, types >= num_types, types, f"event types are numbered below {num_types}"),
        (schema.TIMESTAMP, going_down, times, "a user's timestamps must not go down"),
    ]
    faults = []
    for name, broken, values, rule in rules:
        if broken.any():
            event = int(np.argmax(broken))
            user = int(np.searchsorted(store.offsets, begin + event, side="right")) - 1
            place = begin + event - int(store.offsets[user])
            faults.append(
                f"{store.path / schema.column_file(name)}: user {user}, event {place}: `{name}` is "
                f"{values[event]}; {rule}; prepare the store again"
            )
    return faults
