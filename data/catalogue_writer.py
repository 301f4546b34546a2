"""What an event store says of its items: their raw ids, artists and titles, and content embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from common.progress import Progress
from data import schema
from data.parquet_io import parquet_writer
from data.sources.base import Catalogue, Source


def write_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Write `items.parquet` and `artists.parquet`."""
    items_schema = schema.items_schema(with_titles=catalogue.titles is not None)
    artists = pa.LargeListArray.from_arrays(
        pa.array(catalogue.artist_offsets, type=pa.int64()),
        pa.array(catalogue.artist_values, type=pa.uint32()),
        type=items_schema.field(schema.ARTISTS).type,
    )
    arrays: list[Any] = [catalogue.item_ids, artists]
    if catalogue.titles is not None:
        arrays.append(catalogue.titles)
    with parquet_writer(folder / schema.ITEMS_FILE, items_schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=items_schema))
    with parquet_writer(folder / schema.ARTISTS_FILE, schema.artists_schema()) as writer:
        writer.write_table(pa.Table.from_arrays([catalogue.artist_ids], schema=schema.artists_schema()))


def write_embeddings(folder: Path, source: Source, width: int) -> int:
    """Write `embeddings.parquet` block by block; returns how many items have one."""
    arrow_schema = schema.embeddings_schema(width)
    count = 0
    with (
        parquet_writer(folder / schema.EMBEDDINGS_FILE, arrow_schema) as writer,
        Progress("embeddings", None, "items") as progress,
    ):
        for block in source.embeddings():
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(block.vectors.reshape(-1)), type=arrow_schema.field(schema.EMBEDDING).type
            )
            writer.write_table(pa.Table.from_arrays([pa.array(block.items), vectors], schema=arrow_schema))
            count += len(block.items)
            progress.advance(len(block.items))
    return count
