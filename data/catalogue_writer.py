"""What an event store says of its items: their raw ids, artists, albums and titles, and content embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from common.progress import Progress
from data import schema
from data.column_files import ColumnWriter
from data.parquet_io import parquet_writer
from data.sources.base import Catalogue, Groups, Source


def write_catalogue(folder: Path, catalogue: Catalogue) -> list[str]:
    """Write `items.parquet`, `artists.parquet` and, where there are albums, `albums.parquet`; returns their names."""
    items_schema = schema.items_schema(
        with_titles=catalogue.titles is not None, with_albums=catalogue.albums is not None
    )
    columns: dict[str, Any] = {
        schema.ITEM: catalogue.item_ids,
        schema.ARTISTS: _lists(catalogue.artists, items_schema.field(schema.ARTISTS).type),
    }
    tables = {schema.ARTISTS_FILE: pa.table([catalogue.artists.ids], schema=schema.artists_schema())}
    if catalogue.albums is not None:
        columns[schema.ALBUMS] = _lists(catalogue.albums, items_schema.field(schema.ALBUMS).type)
        tables[schema.ALBUMS_FILE] = pa.table([catalogue.albums.ids], schema=schema.albums_schema())
    if catalogue.titles is not None:
        columns[schema.TITLE] = catalogue.titles
    tables = {schema.ITEMS_FILE: pa.table(columns, schema=items_schema), **tables}
    for name, table in tables.items():
        with parquet_writer(folder / name, table.schema) as writer:
            writer.write_table(table)
    return list(tables)


def _lists(groups: Groups, dtype: pa.DataType) -> pa.Array:
    return pa.LargeListArray.from_arrays(
        pa.array(groups.offsets, type=pa.int64()), pa.array(groups.values, type=pa.uint32()), type=dtype
    )


def write_embeddings(folder: Path, source: Source, width: int) -> int:
    """Write the embeddings block by block; returns how many items have one."""
    (folder / schema.EMBEDDINGS_FOLDER).mkdir()
    with (
        ColumnWriter(folder / schema.EMBEDDED_ITEMS_FILE, schema.EMBEDDED_ITEM_DTYPE) as items,
        ColumnWriter(folder / schema.VECTORS_FILE, schema.VECTOR_DTYPE, width) as vectors,
        Progress("embeddings", None, "items") as progress,
    ):
        for block in source.embeddings():
            items.append(block.items)
            vectors.append(block.vectors)
            progress.advance(len(block.items))
        return items.rows
