"""Write an event store from any source, out of core: one block of users in memory at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.config import to_plain
from common.files import write_folder_aside, write_json_atomically
from common.progress import Progress
from data import duplicates, schema
from data.catalogue_writer import write_catalogue, write_embeddings
from data.column_files import ColumnWriter
from data.leakage import prove_no_leakage
from data.manifest import Manifest, seal
from data.parquet_io import parquet_writer
from data.series_writer import SeriesRequest, SeriesWriter
from data.sources.base import Histories, Source
from data.split import SplitConfig


def write_event_store(
    source: Source,
    target: Path,
    split: SplitConfig | None = None,
    on_duplicates: str = duplicates.KEEP,
    series: SeriesRequest | None = None,
) -> Manifest:
    """Read `source` and write its event store to `target`, whole or not at all.

    Args:
        split: which events are held out, leave-last-out where not given. Proven to leak nothing before the store is
            made visible.
        on_duplicates: one of `data.duplicates.RULES`.
        series: which slow series the store shall have, none where not given.

    Raises:
        InputError: a fault in the source, or a split that leaves nothing; an existing `target` stays as it was.
    """
    split = split or SplitConfig()
    with write_folder_aside(target) as folder:
        catalogue = source.catalogue()
        files = write_catalogue(folder, catalogue)
        series_writer = SeriesWriter(series, catalogue) if series else None
        totals = _write_events(folder, source, len(catalogue.item_ids), on_duplicates)
        files += [schema.USERS_FILE, schema.column_file(schema.OFFSETS)]
        files += map(schema.column_file, schema.column_names(source.optional_columns))
        embeddings = 0
        if source.embedding_width is not None:
            embeddings = write_embeddings(folder, source, source.embedding_width)
            files += [schema.EMBEDDED_ITEMS_FILE, schema.VECTORS_FILE]
        prove_no_leakage(folder, split, totals.users, (totals.first, totals.last))
        of_series: dict[str, Any] = {}
        series_counts: dict[str, int] = {}
        if series_writer is not None:
            names, entries, of_series["series"] = series_writer.write(folder, totals.users, (totals.first, totals.last))
            files += names
            series_counts[schema.SERIES_ENTRIES] = entries
        manifest = seal(
            folder,
            tuple(files),
            source=dict(source.description),
            counts={
                "users": totals.users,
                "events": totals.events,
                "items": len(catalogue.item_ids),
                "artists": len(catalogue.artists.ids),
                "albums": len(catalogue.albums.ids) if catalogue.albums is not None else 0,
                "embeddings": embeddings,
                **series_counts,
            },
            event_types=source.event_types,
            event_type_counts=tuple(totals.by_type.tolist()),
            optional_columns=source.optional_columns,
            titles=catalogue.titles is not None,
            albums=catalogue.albums is not None,
            embedding_width=source.embedding_width,
            time_range=(totals.first, totals.last),
            duplicates={"rule": on_duplicates, "found": totals.duplicates},
            split=to_plain(split),
            **of_series,
        )
        write_json_atomically(folder / schema.MANIFEST_FILE, manifest.to_json())
    return manifest


class _Totals:
    """What the manifest says of the events, gathered while they pass."""

    def __init__(self, num_types: int) -> None:
        self.users = 0
        self.events = 0
        self.duplicates = 0
        self.by_type = np.zeros(num_types, dtype=np.int64)
        self.first = np.iinfo(np.int64).max
        self.last = 0

    def add(self, histories: Histories) -> None:
        self.users += len(histories.user_ids)
        self.events += int(histories.offsets[-1])
        self.by_type += np.bincount(histories.columns[schema.EVENT_TYPE], minlength=len(self.by_type))
        times = histories.columns[schema.TIMESTAMP]
        self.first = min(self.first, int(times.min()))
        self.last = max(self.last, int(times.max()))


class _EventsWriter:
    """Users and their events, appended block by block. A context manager."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._files = ExitStack()
        (folder / schema.EVENTS_FOLDER).mkdir()
        self._users: pq.ParquetWriter = self._files.enter_context(
            parquet_writer(folder / schema.USERS_FILE, schema.users_schema())
        )
        self._offsets = self._open(folder, schema.OFFSETS, np.dtype(np.int64))
        self._columns = {name: self._open(folder, name, schema.EVENT_COLUMNS[name].dtype) for name in names}
        self._offsets.append(np.zeros(1, dtype=np.int64))
        self._events = 0

    def _open(self, folder: Path, name: str, dtype: np.dtype[Any]) -> ColumnWriter:
        return self._files.enter_context(ColumnWriter(folder / schema.column_file(name), dtype))

    def append(self, histories: Histories) -> None:
        self._users.write_table(pa.table([histories.user_ids], schema=schema.users_schema()))
        self._offsets.append(self._events + histories.offsets[1:].astype(np.int64))
        for name, column in self._columns.items():
            column.append(histories.columns[name])
        self._events += int(histories.offsets[-1])

    def __enter__(self) -> _EventsWriter:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)


def _write_events(folder: Path, source: Source, num_items: int, on_duplicates: str) -> _Totals:
    names = schema.column_names(source.optional_columns)
    totals = _Totals(len(source.event_types))
    with (
        Progress("events", source.num_events, "events") as progress,
        _EventsWriter(folder, names) as writer,
    ):
        for histories in source.histories():
            _check_promises(histories, names, num_items)
            read = int(histories.offsets[-1])
            histories = _deduplicated(histories, on_duplicates, totals)
            writer.append(histories)
            totals.add(histories)
            progress.advance(read)
    return totals


def _deduplicated(histories: Histories, on_duplicates: str, totals: _Totals) -> Histories:
    repeated_E = duplicates.repeated_events(histories)
    totals.duplicates += int(repeated_E.sum())
    if on_duplicates == duplicates.REFUSE:
        duplicates.refuse(histories, repeated_E)
    if on_duplicates == duplicates.DROP and repeated_E.any():
        return duplicates.without(histories, repeated_E)
    return histories


def _check_promises(histories: Histories, names: tuple[str, ...], num_items: int) -> None:
    """A source that breaks its promise is a bug of ours: better stopped here than found in a trained model."""
    columns, events = histories.columns, int(histories.offsets[-1])
    assert set(columns) == set(names), f"columns {sorted(columns)}"
    for name, values in columns.items():
        assert values.dtype == schema.EVENT_COLUMNS[name].dtype, name
        assert values.shape == (events,), name
    assert len(histories.user_ids) == len(histories.offsets) - 1
    assert (np.diff(histories.offsets) > 0).all()
    assert events == 0 or int(columns[schema.ITEM].max()) < num_items
