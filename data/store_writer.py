"""Write an event store from any source, out of core: one block of users in memory at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from common.files import write_folder_aside, write_json_atomically
from common.progress import Progress
from data import schema
from data.catalogue_writer import write_catalogue, write_embeddings
from data.manifest import Manifest, seal
from data.parquet_io import parquet_writer
from data.sources.base import Catalogue, Histories, Source


def write_event_store(source: Source, target: Path) -> Manifest:
    """Read `source` and write its event store to `target`, whole or not at all.

    Raises:
        InputError: a fault in the source; an existing `target` stays as it was.
    """
    with write_folder_aside(target) as folder:
        catalogue = source.catalogue()
        write_catalogue(folder, catalogue)
        totals = _write_events(folder, source, num_items=len(catalogue.item_ids))
        files = [schema.EVENTS_FILE, schema.ITEMS_FILE, schema.ARTISTS_FILE]
        embeddings = 0
        if source.embedding_width is not None:
            embeddings = write_embeddings(folder, source, source.embedding_width)
            files.append(schema.EMBEDDINGS_FILE)
        manifest = seal(
            folder,
            tuple(files),
            source=dict(source.description),
            counts={
                "users": totals.users,
                "events": totals.events,
                "items": len(catalogue.item_ids),
                "artists": len(catalogue.artist_ids),
                "embeddings": embeddings,
            },
            event_types=source.event_types,
            event_type_counts=tuple(totals.by_type.tolist()),
            optional_columns=source.optional_columns,
            titles=catalogue.titles is not None,
            embedding_width=source.embedding_width,
            time_range=(totals.first, totals.last),
        )
        write_json_atomically(folder / schema.MANIFEST_FILE, manifest.to_json())
    return manifest


class _Totals:
    """What the manifest says of the events, gathered while they pass."""

    def __init__(self, num_types: int) -> None:
        self.users = 0
        self.events = 0
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


def _write_events(folder: Path, source: Source, num_items: int) -> _Totals:
    arrow_schema = schema.events_schema(source.optional_columns)
    totals = _Totals(len(source.event_types))
    with (
        parquet_writer(folder / schema.EVENTS_FILE, arrow_schema) as writer,
        Progress("events", source.num_events, "events") as progress,
    ):
        for histories in source.histories():
            _check_promises(histories, arrow_schema, num_items)
            writer.write_table(_events_table(histories, arrow_schema))
            totals.add(histories)
            progress.advance(int(histories.offsets[-1]))
    return totals


def _check_promises(histories: Histories, arrow_schema: pa.Schema, num_items: int) -> None:
    """A source that breaks its promise is a bug of ours: better stopped here than found in a trained model."""
    columns, events = histories.columns, int(histories.offsets[-1])
    assert set(columns) == set(arrow_schema.names) - {schema.USER}, f"columns {sorted(columns)}"
    for name, values in columns.items():
        assert values.dtype == schema.EVENT_COLUMNS[name].dtype, name
        assert values.shape == (events,), name
    assert len(histories.user_ids) == len(histories.offsets) - 1
    assert (np.diff(histories.offsets) > 0).all()
    assert events == 0 or int(columns[schema.ITEM].max()) < num_items


def _events_table(histories: Histories, arrow_schema: pa.Schema) -> pa.Table:
    offsets = pa.array(histories.offsets, type=pa.int64())
    arrays = [histories.user_ids]
    for field in list(arrow_schema)[1:]:
        arrays.append(pa.LargeListArray.from_arrays(offsets, pa.array(histories.columns[field.name]), type=field.type))
    return pa.Table.from_arrays(arrays, schema=arrow_schema)
